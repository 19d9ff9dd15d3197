"""Every reader takes what its format holds, and refuses damage in one line that says where and why."""

import json
import os
import pickle
import re
from pathlib import Path

import grain.python as grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvr_jax.data import chat
from lvr_jax.data.record_files import RecordError, RecordFile
from lvr_jax.data.record_formats import BOX_REQUEST
from lvr_jax.data.record_formats_interleaved import Step, final_answer
from lvr_jax.data.records import FORMATS, SHORT_ANSWER, RecordSource, lvr_meta, plain_folder
from lvr_jax.data.sample import DataError, SampleError

GOLDEN = Path(__file__).parents[1] / "golden" / "visual_cot"
HELPER = "<abs_vis_token></abs_vis_token>"
NAN = float("nan")


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_image(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 30, 60)).save(path)
    return path


# One sound record of each format, its images being a.png (40 x 30) and b.png.
PIXELS = [10, 3, 30, 27]
PADDED = [10 / 40, (3 + 5) / 40, 30 / 40, (27 + 5) / 40]        # 30 px high in a square of 40: shifted by 5
NORMALISED = (10 / 40, 3 / 30, 30 / 40, 27 / 30)
RECORDS = {
    "lvr": {
        "dataset": "sroie", "split": "train", "question_id": 0, "image": ["a.png"], "bboxs": [list(NORMALISED)],
        "conversations": [{"from": "human", "value": f"<image>\nWho is it?\n{SHORT_ANSWER}"},
                          {"from": "gpt", "value": "<lvr>\n<answer> Zoë </answer>"}]},
    "visual_cot": {
        "question": "Who is it?", "answer": "Zoë", "image": "a.png", "width": 40, "height": 30, "bboxs": [PIXELS],
        "dataset": "dude", "split": "train"},
    "viscot_363k": {
        "dataset": "flickr30k", "split": "train", "question_id": 7, "image": ["a.png", f"a.png###{PIXELS}"],
        "conversations": [{"from": "human", "value": f"<image>\nWho is it? {BOX_REQUEST}"},
                          {"from": "gpt", "value": str([round(v, 3) for v in PADDED])},
                          {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Zoë"}]},
    "plain": {"image": "a.png", "question": "Who is it?", "answer": "Zoë", "boxes": [PIXELS],
              "box_format": "pixel_xyxy"},
    "mirage": {"text_input": "<image>\nWho is it?", "image_input": "a.png", "image_output": "b.png",
               "text_output": "Zoom in. <output_image> So it is \\boxed{Zoë}."},
    "ilvr": {"text_input": "Who is it?", "image_input": ["a.png"], "sequence_plan": [
        {"type": "text", "content": "Zoom in."}, {"type": "latent", "helper_image": "b.png"},
        {"type": "text", "content": "So it is \\boxed{Zoë}"}]},
    "monet": {"metadata": {"sample_id": 4}, "data": [
        {"role": "system", "content": [{"type": "text", "text": "Put your answer in a box."}]},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who is it?"}]},
        {"role": "assistant", "content": [
            {"type": "text", "text": f"Zoom in. {HELPER}"}, {"type": "image", "image": "b.png"},
            {"type": "text", "text": "<observation>A face.</observation> \\boxed{Zoë}"}]}]},
}
LISTS = {"lvr", "viscot_363k", "monet"}       # published as one JSON list; the others as a record a line
BOXED = {"lvr", "visual_cot", "viscot_363k", "plain"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    write_image(path / "a.png")
    write_image(path / "b.png")
    return path


def source_of(folder, kind, *rows, **options):
    path = folder / f"{kind}.json{'' if kind in LISTS else 'l'}"
    if kind in LISTS:
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        write_lines(path, rows)
    return RecordSource(path, kind, **options)


def changed(record, path, value):
    """A deep copy with the member at `path` (keys and indices) replaced, or removed if value is ..."""
    copy = json.loads(json.dumps(record))
    *parents, last = path
    place = copy
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


# ------------------------------------------------------------------------------------------------------- all formats


def test_every_format_is_tested_here():
    assert set(RECORDS) == set(FORMATS)


@pytest.mark.parametrize("kind", RECORDS)
def test_each_format_gives_the_same_question_about_the_same_picture(folder, kind):
    sample = source_of(folder, kind, RECORDS[kind], RECORDS[kind])[1]
    assert sample.images == (str(folder / "a.png"),)
    assert sample.question.removesuffix(f"\n{SHORT_ANSWER}") == "Who is it?"
    assert (sample.answer, sample.id, sample.source) == ("Zoë", f"{kind}-1", kind)
    if kind in BOXED:
        # exact, but for viscot_363k too: its pixels are what is read
        assert np.allclose(sample.boxes, [NORMALISED], rtol=0, atol=1e-15)
    else:
        before, helper, after = sample.steps
        assert helper == Step("image", str(folder / "b.png"))
        assert before.kind == after.kind == "text"
        assert before.value.strip() == "Zoom in." and "\\boxed{Zoë}" in after.value


@pytest.mark.parametrize("kind", RECORDS)
def test_a_source_is_a_grain_source_that_pickles_with_its_index(folder, kind):
    source = source_of(folder, kind, *[RECORDS[kind]] * 3)
    assert isinstance(source, grain.RandomAccessDataSource)
    assert len(grain.MapDataset.source(source)) == len(source) == 3
    other = pickle.loads(pickle.dumps(source))
    assert other == source and repr(other) == repr(source) and len(repr(source)) < 500
    assert other[2].id == source[2].id and other[2].boxes == source[2].boxes
    with pytest.raises(IndexError, match="3 records, asked for 3"):
        source[3]


FAULTS = [      # format, where, what instead (... removes it), field named, what the message says
    ("lvr", ["conversations", 1, "value"], "<lvr>\nZoë", "conversations[1].value", "<answer>"),
    ("lvr", ["conversations", 1, "value"], "<lvr>\n<answer>  </answer>", "conversations[1].value", "not blank"),
    ("lvr", ["conversations", 1, "value"], "<lvr>\nI see <answer> Zoë </answer>", "conversations[1].value", "verbatim"),
    ("lvr", ["conversations", 1, "value"], "<answer> Zoë </answer>", "bboxs", "0 <lvr>"),
    ("lvr", ["conversations"], ..., "conversations", "missing"),
    ("lvr", ["conversations", 1, "from"], "human", "conversations", "human, gpt"),
    ("lvr", ["conversations", 0, "value"], "<image><image> Who?", "conversations[0].value", "expected none or 1"),
    ("lvr", ["bboxs", 0], PIXELS, "bboxs[0]", "looks like pixels"),
    ("lvr", ["bboxs", 0], [0.1, 0.2, 1.4, 0.5], "bboxs[0]", "outside"),
    ("lvr", ["bboxs", 0], [0.5, 0.2, 0.1, 0.5], "bboxs[0]", "no area"),
    ("lvr", ["bboxs", 0], [0.1, 0.2, NAN, 0.5], "bboxs[0]", "finite"),
    ("lvr", ["bboxs", 0], [0.1, 0.2, 0.5], "bboxs[0]", "four"),
    ("lvr", ["bboxs"], [], "bboxs", "at least one"),
    ("lvr", ["image", 0], "gone.png", "image", "no image at"),
    ("lvr", ["image"], [], "image", "at least one"),
    ("visual_cot", ["answer"], ..., "answer", "missing, expected text"),
    ("visual_cot", ["answer"], " ", "answer", "not blank"),
    ("visual_cot", ["answer"], None, "answer", "not blank"),
    ("visual_cot", ["answer"], 7, "answer", "text"),
    ("visual_cot", ["question"], "", "question", "not blank"),
    ("visual_cot", ["bboxs", 0], [10, 3, 41, 27], "bboxs[0]", "of an image of 40 x 30"),
    ("visual_cot", ["bboxs", 0], [10, 27, 30, 3], "bboxs[0]", "no area"),
    ("visual_cot", ["bboxs", 0], list(NORMALISED), "bboxs[0]", "looks normalised"),
    ("visual_cot", ["bboxs", 0], [10, 3, None, 27], "bboxs[0]", "four numbers"),
    ("visual_cot", ["bboxs"], ..., "bboxs", "missing"),
    ("visual_cot", ["width"], ..., "width", "missing, expected the image's size"),
    ("visual_cot", ["height"], 0, "height", "whole number of pixels"),
    ("visual_cot", ["image"], "gone.png", "image", "no image at"),
    ("viscot_363k", ["image", 1], "a.png", "image", "###"),
    ("viscot_363k", ["image", 1], f"b.png###{PIXELS}", "image", "###"),
    ("viscot_363k", ["image", 1], "a.png###[10, 3, 50, 27]", "image[1]", "outside"),
    ("viscot_363k", ["conversations", 1, "value"], str(list(NORMALISED)), "conversations[1].value", "padded"),
    ("viscot_363k", ["conversations", 1, "value"], "somewhere", "conversations[1].value", "padded"),
    ("viscot_363k", ["conversations", 0, "value"], "<image>\nWho is it?", "conversations[0].value", "to end with"),
    ("viscot_363k", ["conversations", 3, "value"], "", "conversations[3].value", "not blank"),
    ("plain", ["box_format"], ..., "boxes[0]", "looks like pixels"),
    ("plain", ["box_format"], "pixels", "boxes[0]", "expected one of"),
    ("plain", ["boxes"], PIXELS, "boxes[0]", "four numbers"),
    ("plain", ["image"], ..., "image", "one of image and images"),
    ("plain", ["options"], ["Ada", "Bob"], "answer", "one of the options"),
    ("plain", ["options"], ["Zoë", "Zoë"], "options", "all different"),
    ("mirage", ["text_output"], "<output_image> <output_image> x", "text_output", "at most once"),
    ("mirage", ["text_output"], "Zoom in. <output_image>", "text_output", "ends in text"),
    ("mirage", ["text_output"], "Zoom in. <output_image> \\boxed{", "text_output", "answer"),
    ("mirage", ["image_output"], "gone.png", "image_output", "no image at"),
    ("ilvr", ["sequence_plan", 1, "helper_image"], ..., "sequence_plan[1].helper_image", "missing"),
    ("ilvr", ["sequence_plan", 1, "type"], "video", "sequence_plan[1].type", "text or latent"),
    ("ilvr", ["sequence_plan"], [], "sequence_plan", "at least one"),
    ("monet", ["data", 2, "content", 0, "text"], "Zoom in.", "data", HELPER),
    ("monet", ["data", 2, "content", 2, "text"], f"{HELPER} \\boxed{{Zoë}}", "data", HELPER),
    ("monet", ["data", 2, "content", 0, "text"], f"{HELPER}{HELPER}", "data", HELPER),
    ("monet", ["data", 2, "content", 0], {"type": "image", "image": "b.png"}, "data", HELPER),
    ("monet", ["data", 2, "role"], "user", "data", "one assistant turn"),
    ("monet", ["data", 1, "content", 0], {"type": "text", "text": "x"}, "data", "an image in the user turn"),
    ("monet", ["data", 1, "content", 0], {"type": "video"}, "data[1].content[0]", "of type image"),
]


@pytest.mark.parametrize("kind, path, value, field, says", FAULTS)
def test_a_damaged_record_is_refused_in_one_line(folder, kind, path, value, field, says):
    source = source_of(folder, kind, RECORDS[kind], changed(RECORDS[kind], path, value))
    assert source[0].answer == "Zoë"                     # its neighbour is unharmed
    with pytest.raises(RecordError) as caught:
        source[1]
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{source.path}: record 1: {field} = ")
    assert says in message, message
    assert isinstance(caught.value, SampleError) and (caught.value.index, caught.value.field) == (1, field)
    again = pickle.loads(pickle.dumps(caught.value))     # as when it comes from a worker process
    assert str(again) == message and (again.file, again.index) == (source.path, 1)


@settings(max_examples=60, deadline=None)
@given(box=st.lists(st.one_of(st.floats(), st.floats(-0.5, 1.5), st.integers(-5, 50)), min_size=0, max_size=5))
def test_a_box_is_either_sound_or_refused(folder, box):
    source = source_of(folder, "lvr", changed(RECORDS["lvr"], ["bboxs", 0], box))
    try:
        (x0, y0, x1, y1), = source[0].boxes
    except RecordError as error:
        assert error.field == "bboxs[0]"
    else:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and [x0, y0, x1, y1] == box


def test_long_values_are_cut_in_the_message(folder):
    source = source_of(folder, "lvr", changed(RECORDS["lvr"], ["conversations", 1, "value"], "blah " * 1000))
    with pytest.raises(RecordError) as caught:
        source[0]
    assert len(str(caught.value)) < 500 and "..." in str(caught.value)


# --------------------------------------------------------------------------------------------------------- the files


def test_json_lists_and_lines_hold_the_same_records(tmp_path):
    rows = [{"n": n, "text": text} for n, text in enumerate(
        ["plain", 'quote " and \\ backslash', "braces ]}[{,", "umlaut ä, 漢字, 🙂", "\u2028 line separator", ""])]
    write_lines(tmp_path / "rows.jsonl", rows)
    for indent in (None, 2):
        for ascii_only in (True, False):
            text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
            (tmp_path / "rows.json").write_text(f" \n{text}\n", encoding="utf-8")
            for name in ("rows.json", "rows.jsonl"):
                file = RecordFile(tmp_path / name)
                assert [file.read(i) for i in range(len(file))] == rows


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.recursive(
    st.one_of(st.text(), st.integers(), st.booleans(), st.none()), lambda inner: st.lists(inner, max_size=3))),
    min_size=1, max_size=6), ascii_only=st.booleans())
def test_any_records_are_found_again(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(json.dumps(rows, ensure_ascii=ascii_only).encode())
    file = RecordFile(path)
    assert [file.read(i) for i in range(len(file))] == rows


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\r\n   \n{"n": 1}')
    file = RecordFile(path)
    assert [file.read(i) for i in range(len(file))] == [{"n": 0}, {"n": 1}]


def test_a_damaged_line_harms_only_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": \n[1]\n{"n": "\xff"}\n{"n": 4}\n')
    file = RecordFile(path)
    assert len(file) == 5 and file.read(0) == {"n": 0} and file.read(4) == {"n": 4}
    for index, says in ((1, "not JSON"), (2, "expected a JSON object"), (3, "not UTF-8")):
        with pytest.raises(RecordError, match=rf"rows.jsonl: record {index}: .*{says}"):
            file.read(index)


@pytest.mark.parametrize("content, says", [
    (b"", "holds no records"), (b" \n\n", "holds no records"), (b"[]", "holds no records"), (b" [ \n]", "no records"),
    (b'[{"n": 0}, {"n": 1}', "record 1.*cut off"), (b'[{"n": 0}, {"n": ', "record 1.*cut off"),
    (b'[{"n": 0} {"n": 1}]', "record 0.*expected ','"), (b'{"n": 0}', "expected a JSON list")])
def test_a_file_that_is_empty_or_cut_off_is_refused_by_name(tmp_path, content, says):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows\.json: .*{says}") as caught:
        RecordSource(path, "lvr")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_setting_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read \(No such file"):
        RecordSource(tmp_path / "gone.jsonl", "visual_cot")
    path = write_lines(tmp_path / "rows.jsonl", [RECORDS["visual_cot"]])
    for settings_, says in (({"format": "coco"}, "format 'coco', expected one of lvr, visual_cot"),
                            ({"format": "visual_cot", "box_policy": "fix"}, "box_policy 'fix', expected one of refuse"),
                            ({"format": "visual_cot", "verbatim": True}, "expected format 'lvr'")):
        with pytest.raises(DataError, match=re.escape(says)):
            RecordSource(path, **settings_)


def test_remote_files_are_read_through_epath(folder, monkeypatch):
    """gs:// by a stand-in for the file system: what matters is that paths go to epath unharmed."""
    from etils import epath

    asked = []

    class Bucket:
        def __init__(self, path):
            asked.append(path)
            self.local = folder / os.path.basename(path)

        def read_bytes(self):
            return self.local.read_bytes()

        def exists(self):
            return self.local.exists()

    source_of(folder, "lvr", RECORDS["lvr"], changed(RECORDS["lvr"], ["image", 0], "gone.png"))
    monkeypatch.setattr(epath, "Path", Bucket)
    source = RecordSource("gs://bucket/set/lvr.json", "lvr", "gs://bucket/images/")
    assert source[0].images == ("gs://bucket/images/a.png",)
    assert pickle.loads(pickle.dumps(source))[0].answer == "Zoë"
    assert asked == ["gs://bucket/set/lvr.json", "gs://bucket/images/a.png"] * 2
    with pytest.raises(RecordError, match="no image at gs://bucket/images/gone.png"):
        source[1]


# ------------------------------------------------------------------------------------------------------- each format


def test_visual_cot_rows_read_as_lvr_formatted_them():
    """The row that proves LVR's box convention: [0.096, 0.182, 0.929, 0.540], plain, three decimals."""
    source = RecordSource(GOLDEN / "sroie_excerpt.jsonl", "visual_cot", "viscot/sroie", "sroie", SHORT_ANSWER,
                          check_images=False)
    sample = source[0]
    assert sample.images == ("viscot/sroie/X51006555072.jpg",)
    assert sample.question == f"What is the company in the invoice shown in the picture?\n{SHORT_ANSWER}"
    assert (sample.answer, sample.category, sample.id) == ("DIGI TELECOMMUNICATIONS SDN BHD", "sroie", "sroie-0")
    assert np.allclose(sample.boxes[0], [0.096, 0.182, 0.929, 0.540], rtol=0, atol=5e-4)
    assert sample.boxes[0] == (57 / 592, 179 / 982, 550 / 592, 530 / 982)


@pytest.mark.parametrize("name", ["sroie", "vsr"])
def test_real_visual_cot_rows_read_whole(name):
    source = RecordSource(GOLDEN / f"{name}_excerpt.jsonl", "visual_cot", check_images=False)
    assert len(source) == 12
    for i in range(12):
        record = source.record(i)
        assert (source[i].question, source[i].answer) == (record["question"], record["answer"])
        size = np.array([record["width"], record["height"]] * 2)
        assert np.allclose(np.array(source[i].boxes) * size, record["bboxs"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy, refused", [("refuse", 8), ("clip", 6), ("keep", 0)])
def test_real_boxes_off_the_page_are_refused_clipped_or_kept_by_name(policy, refused):
    source = RecordSource(GOLDEN / "dude_excerpt.jsonl", "visual_cot", check_images=False, box_policy=policy)
    read = {}
    for i in range(len(source)):
        try:
            read[i] = source[i].boxes[0]
        except RecordError as error:
            assert error.field == "bboxs[0]" and i >= 6      # the first six rows are sound
    assert len(source) - len(read) == refused
    if policy == "clip":        # row 8 of the file: [1299, 1036, 2252, 1221] on a page of 1700 x 2200
        assert read[6] == (1299 / 1700, 1036 / 2200, 1.0, 1221 / 2200)
    if policy == "keep":        # the official arithmetic starts from these very numbers
        assert read[6] == (1299 / 1700, 1036 / 2200, 2252 / 1700, 1221 / 2200)


def test_kept_boxes_must_still_be_numbers(folder):
    for box in ([1, 2, NAN, 4], [1, 2, 3], "1234", [1, 2, 3, "4"]):
        source = source_of(folder, "visual_cot", changed(RECORDS["visual_cot"], ["bboxs", 0], box), box_policy="keep")
        with pytest.raises(RecordError, match="four finite numbers"):
            source[0]


def test_an_lvr_meta_file_lists_its_sources(folder):
    (folder / "one").mkdir(exist_ok=True)
    source_of(folder / "one", "lvr", RECORDS["lvr"])
    source_of(folder, "lvr", *[RECORDS["lvr"]] * 2)
    entries = [{"ds_name": "viscot_1", "data_path": "one/lvr.json", "image_folder": str(folder), "ds_type": "Q_A"},
               {"ds_name": "viscot_2", "data_path": str(folder / "lvr.json"), "image_folder": "."}]
    meta = folder / "meta.json"
    meta.write_text(json.dumps(entries))
    first, second = lvr_meta(meta)
    assert [len(first), len(second), first.name, second.name] == [1, 2, "viscot_1", "viscot_2"]
    assert first[0].id == "viscot_1-0" and Path(second[1].images[0]).samefile(first[0].images[0])
    meta.write_text(json.dumps([changed(entries[0], ["data_path"], ...)]))
    with pytest.raises(RecordError, match=r"meta\.json: record 0: data_path = None: missing, expected text"):
        lvr_meta(meta)


def test_an_lvr_reply_may_hold_several_boxes_or_be_taken_verbatim(folder):
    two = changed(changed(RECORDS["lvr"], ["bboxs"], [list(NORMALISED), [0, 0, 1, 1]]),
                  ["conversations", 1, "value"], "<lvr>\n<lvr>\n<answer> a  b </answer>")
    sample = source_of(folder, "lvr", two)[0]
    assert sample.boxes == (NORMALISED, (0, 0, 1, 1)) and sample.answer == "a  b"
    mixed = changed(two, ["conversations", 1, "value"], "<lvr>\nhere, and <lvr>\n<answer> b </answer>")
    sample = source_of(folder, "lvr", mixed, verbatim=True)[0]
    assert sample.answer == "<lvr>\nhere, and <lvr>\n<answer> b </answer>" and len(sample.boxes) == 2


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (333, 334), (50, 1001)])
def test_both_boxes_of_viscot_363k_agree_at_any_shape(tmp_path, size):
    width, height = size
    write_image(tmp_path / "a.png", width, height)
    pixels, side = [width // 10, height // 7, width // 2, height - 1], max(size)
    padded = [round((v + (side - size[i % 2]) // 2) / side, 3) for i, v in enumerate(pixels)]
    row = changed(changed(RECORDS["viscot_363k"], ["image", 1], f"a.png###{pixels}"),
                  ["conversations", 1, "value"], str(padded))
    sample = source_of(tmp_path, "viscot_363k", row)[0]
    assert sample.boxes == ((pixels[0] / width, pixels[1] / height, pixels[2] / width, pixels[3] / height),)
    assert sample.question == "Who is it?" and sample.category == "flickr30k"


def test_an_unreadable_image_is_named_where_its_size_is_needed(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    source = source_of(tmp_path, "viscot_363k", RECORDS["viscot_363k"])
    with pytest.raises(RecordError, match=r"image\[0\] = .*a\.png.*size is needed and cannot be read"):
        source[0]


def test_a_plain_folder_letters_its_options_and_takes_any_named_box_format(tmp_path):
    folder = tmp_path / "mine"
    write_image(folder / "pictures" / "a.png")
    base = {"image": "pictures/a.png", "question": "Which?", "options": ["red", "green", "blue"], "answer": "green",
            "category": "colour"}
    boxes = {"normalised_xyxy": list(NORMALISED), "pixel_xyxy": PIXELS, "pixel_xywh": [10, 3, 20, 24],
             "padded_square_xyxy": PADDED}
    write_lines(folder / "records.jsonl", [{**base, "boxes": [box], "box_format": name} for name, box in boxes.items()]
                + [{**base, "answer": "B"}])
    source = plain_folder(folder)
    for sample in (source[i] for i in range(5)):
        assert (sample.answer, sample.letter, sample.options) == ("green", "B", ("red", "green", "blue"))
        assert sample.question == "Which?\n(A) red\n(B) green\n(C) blue"
        assert sample.source == "mine" and sample.category == "colour"
        assert np.allclose(sample.boxes, [NORMALISED] if sample.boxes else [], rtol=0, atol=1e-12)
    assert source[4].boxes == ()


def test_placeholders_inside_the_text_stay_where_they_are(tmp_path):
    write_image(tmp_path / "a.png")
    rows = [{"images": ["a.png", "a.png"], "question": text, "answer": "yes"} for text in
            ("<image>\n<image>\nSame?", "Is <image> like <image>?", "Same?")]
    write_lines(tmp_path / "records.jsonl", rows)
    source = plain_folder(tmp_path)
    assert [source[i].question for i in range(3)] == ["Same?", "Is <image> like <image>?", "Same?"]


def test_images_may_go_unchecked_and_are_never_read(tmp_path):
    source = source_of(tmp_path, "visual_cot", RECORDS["visual_cot"], check_images=False)
    assert source[0].images == (str(tmp_path / "a.png"),) and not (tmp_path / "a.png").exists()


def test_mirage_without_a_mark_puts_the_helper_first(folder):
    row = changed(RECORDS["mirage"], ["text_output"], "It is \\boxed{Zoë}")
    steps = source_of(folder, "mirage", row)[0].steps
    assert steps == (Step("image", str(folder / "b.png")), Step("text", "It is \\boxed{Zoë}"))


@pytest.mark.parametrize("user, shown", [
    (["Before:\n", "a.png", " After: ", "b.png", "\nSame?"], "Before:\n# After: #\nSame?"),
    (["Which? ", "a.png"], "Which? #"), (["a.png", "Which?"], "#Which?"),
    (["a.png", "b.png", "\nWhich?"], "##\nWhich?")])
def test_monet_keeps_the_order_of_the_users_texts_and_images(folder, user, shown):
    parts = [{"type": kind, kind: part} for part in user for kind in ["image" if part.endswith(".png") else "text"]]
    sample = source_of(folder, "monet", changed(RECORDS["monet"], ["data", 1, "content"], parts))[0]
    assert "".join("#" if part["type"] == "image" else part["text"] for part in chat._content(sample)) == shown


def test_monet_takes_the_older_name_of_an_image(folder):
    row = RECORDS["monet"]
    for turn, part, name in ((1, 0, "a.png"), (2, 1, "b.png")):
        row = changed(row, ["data", turn, "content", part], {"type": "image", "image_file_name": name})
    sample = source_of(folder, "monet", row)[0]
    assert sample.images == (str(folder / "a.png"),) and sample.steps[1].value == str(folder / "b.png")
    assert HELPER not in "".join(step.value for step in sample.steps)


@pytest.mark.parametrize("text, answer", [
    ("so <answer> B </answer>", "B"), ("\\boxed{x} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    (" just this ", "just this"), ("<answer>A</answer> no, <answer>C</answer>", "C"), ("\\boxed{never", "")])
def test_the_final_answer_is_the_last_marked_one(text, answer):
    assert final_answer(text) == answer
