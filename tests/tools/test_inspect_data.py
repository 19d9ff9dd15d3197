"""A person sees in the picture and the table what the model will get."""

import importlib.util
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from forked import Process
from PIL import Image

from lvr_jax.data import from_config
from lvr_jax.data.sample import DataError, Sample

ROOT = Path(__file__).parents[2]
TOKENIZER = str(ROOT / "tests" / "golden" / "tokenizer.json")
CONFIG = ("--config", "configs/data/digit_search.py:p_lvr_3", f"--config.data.tokenizer={TOKENIZER}")


def inspect_data(*arguments):
    process = Process(["tools/inspect_data.py", *arguments], folder=ROOT)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("inspect_data", ROOT / "tools" / "inspect_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(**changes):
    fields = {
        "tokenizer": TOKENIZER,
        "sources": {"digits": {"kind": "digit_search", "size": 10, "mask_box": True}},
        "template": "p_lvr_2",
        "answer_format": "word_then_letter",
        "min_pixels": 784,
        "max_pixels": 112 * 112,
        "tokens": 512,
        "windows": 8,
        "rows": 2,
    }
    return from_config.DataConfig.read(fields | changes)


@pytest.mark.slow
def test_a_config_becomes_pictures_and_token_tables(tmp_path):
    done = inspect_data(*CONFIG, "--config.data.sources.digits.mask_box=True", "--index", "0,3", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    written = [f"digits-{i}.{end}" for i in (0, 3) for end in ("png", "txt")]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    table = (tmp_path / "digits-0.txt").read_text()
    assert table in done.stdout
    lines = [line.split() for line in table.splitlines()]
    assert table.startswith("digits-train-0-0: ") and "fits a row of 1024 tokens and 16 windows" in table
    order = [line[2] for line in lines if len(line) > 3 and line[2].startswith("<|") and line[3] != "text"]
    assert order[:2] == ["<|image_pad|>"] * 2, "the first and last of 16, the others are left out"
    blocks = [token for token in order if token not in ("<|lvr|>", "<|free|>", "<|image_pad|>")]
    assert blocks == [
        "<|ctx_start|>", "<|lvr_latent_end|>", "<|ctx_end|>", "<|free_start|>", "<|lvr_latent_end|>", "<|free_end|>",
        "<|tgt_start|>", "<|lvr_latent_end|>", "<|tgt_end|>", "<|im_end|>",
    ]  # fmt: skip
    with Image.open(tmp_path / "digits-0.png") as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 100, "an empty picture"


def test_an_experiment_is_looked_at_as_it_is_trained(warm, tmp_path):
    """Its tokenizer is its checkpoint's, its boxes are masked where it says so."""
    status, said = warm("inspect_data", "--config", "configs/masked_input.py:tiny", "--output", tmp_path)
    assert status == 0, said
    table = (tmp_path / "digits-0.txt").read_text()
    assert table in said and "fits a row of 160 tokens" in table and "<|lvr|>" in table
    status, said = warm("inspect_data", "--config", "configs/lvr.py:tiny", "--output", tmp_path / "plain")
    assert status == 0, said
    masked, clean = (Image.open(where / "digits-0.png") for where in (tmp_path, tmp_path / "plain"))
    assert masked.height > 1.5 * clean.height, "input and clean image, one below the other"


def test_the_table_has_one_true_row_for_each_token(tool):
    data = config()
    tokenizer = from_config.make_tokenizer(data)
    example = from_config.make_encode(data, tokenizer)(from_config.make_sources(data)[0].data[1])
    rows = tool.token_rows(example, tokenizer)
    text = "".join(row[2] for row in rows).replace("·", " ")
    assert text == repr(tokenizer.decode(example.tokens.tolist()))[1:-1]
    by_name = dict(zip(tool.COLUMNS, zip(*rows)))
    assert by_name["index"] == tuple(range(example.num_tokens))
    assert [bool(x) for x in by_name["loss"]] == example.loss_mask.tolist()
    assert [x or 0 for x in by_name["stage"]] == example.stage.tolist()
    assert [x if x != "" else -1 for x in by_name["slot"]] == example.vision_slot.tolist()
    assert np.array_equal([by_name[k] for k in ("time", "row", "col")], example.positions)
    assert len(tool.table(example, tokenizer, full=True).splitlines()) == example.num_tokens + 1
    assert len(tool.table(example, tokenizer).splitlines()) == example.num_tokens + 1 - 14 + 1


def test_the_pictures_drawn_are_the_patches(tool):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((56, 112, 3), (84, 28, 3))]
    sample = Sample(
        id="two", images=tuple(images), question="?", answer="a", letter="A", boxes=((0, 0, 1, 1),), box_images=(1,)
    )
    example = from_config.make_encode(config())(sample)
    for drawn, image in zip(tool.pictures(example.patches, example.grids), images):
        np.testing.assert_array_equal(drawn, image)
    cells = tool.latent_cells(example)
    assert [(number, stage) for number, stage, _ in cells] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert [tokens for _, _, tokens in cells] == 2 * [[8], [9], [10]], "all of image 1, behind the 8 tokens of image 0"


def test_dollars_in_a_question_are_drawn_as_text(tool):
    image = np.zeros((56, 56, 3), np.uint8)
    question = "Costs $\\frac$ or $5_to_$6? " * 8
    sample = Sample(id="$x_", images=(image,), question=question, answer="a$", letter="A", boxes=((0, 0, 1, 1),))
    example = from_config.make_encode(config())(sample)
    figure = tool.draw(sample, example, tool.TEMPLATES["p_lvr_2"], f"$x_: \\frac$\n{question}")
    figure.savefig(io.BytesIO(), dpi=40)
    assert not any(text.get_parse_math() for text in figure.findobj(tool.matplotlib.text.Text))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--config: expected a config file with `data` fields"),
        ((*CONFIG, "--index", "-1"), "--index -1: source 'digits' has 100000 examples, numbered from 0"),
        ((*CONFIG, "--output", ""), "--output: empty, expected a folder"),
        ((*CONFIG, "--config.data.nothing=1"), "nothing.*: the config has no such field to set"),
        (("--config", "configs/lvr.py:3b"), "Qwen2.5-VL-3B-Instruct: no such folder"),
        (("--config", "configs/lvr.py:9b"), "config argument '9b', expected one of 3b"),
        (("--config", "configs/nothing.py"), "No such file .*configs/nothing.py"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(warm, arguments, message):
    status, said = warm("inspect_data", *arguments)
    assert status == 2
    line = said.splitlines()[-1]
    assert line.startswith("inspect_data: ") and "Traceback" not in said
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sorces": {}}, "data.sorces: no such field"),
        ({"tokenizer": ""}, "data.tokenizer: missing"),
        ({"template": "lanternn"}, "data.template = 'lanternn': expected one of lvr, "),
        ({"sources": {"a": {"kind": "web"}}}, "data.sources.a.kind = 'web': expected one of digit_search"),
        ({"sources": {"a": {"kind": "digit_search"}}}, "data.sources.a: .*size"),
        ({"sources": {"a": {"kind": "digit_search", "size": 0}}}, "data.sources.a: DigitSearch.size = 0"),
        ({"sources": {"a": {"kind": "records", "path": "no/file.jsonl", "format": "lvr"}}}, "no/file.jsonl"),
    ],
)
def test_a_config_that_makes_no_sense_names_its_field(change, message):
    with pytest.raises(DataError, match=message):
        from_config.make_sources(config(**change))


def test_a_config_becomes_the_stream_that_it_describes():
    data = config(epochs=1, shuffle=False, max_per_row=1, prefetch=1)
    batches = list(from_config.make_pipeline(data))
    assert [row for batch in batches for row in batch.ids] == [(f"digits-train-0-{i}",) for i in range(10)]
    assert batches[0].arrays["tokens"].shape == (2, 512) and batches[0].arrays["patches"].shape == (2, 8, 64, 588)
