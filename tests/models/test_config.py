"""Every config.json is read exactly, and a bad one refused in a line that names file and field."""

import copy

import pytest
from networks import hf_fields, tiny_config

from lvr_jax.models.interface import ConfigError
from lvr_jax.models.qwen2_5_vl.config import SIZES, Config

SOURCE = "some/folder/config.json"
NEEDED_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "fullatt_block_indexes",
    "window_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels", "tokens_per_second",
)  # fmt: skip
NEEDED_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps",
)  # fmt: skip
NEEDED_TOP = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_config", "tie_word_embeddings")


def nested() -> dict:
    return hf_fields(tiny_config())


def flat() -> dict:
    """The hub's layout: text fields at the top, theta beside rope_scaling, type "mrope"."""
    fields = nested()
    text = fields.pop("text_config")
    rope = text.pop("rope_parameters")
    return {
        **fields, **text,
        "rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }  # fmt: skip


def refused(fields) -> str:
    with pytest.raises(ConfigError) as error:
        Config.from_hf(fields, SOURCE)
    message = str(error.value)
    assert message.startswith(SOURCE + ": ") and "\n" not in message
    return message


@pytest.mark.parametrize("layout", [flat, nested])
def test_both_layouts_give_the_same_config(layout):
    assert Config.from_hf(layout(), SOURCE) == tiny_config()


@pytest.mark.parametrize("layout", [flat, nested])
def test_no_default_stands_in_for_a_missing_field(layout):
    for name in NEEDED_TOP:
        fields = layout()
        del fields[name]
        assert f"field {name} is missing" in refused(fields)
    for name in NEEDED_VISION:
        fields = layout()
        del fields["vision_config"][name]
        assert f"field vision_config.{name}" in refused(fields)
    for name in NEEDED_TEXT:
        fields = layout()
        del fields.get("text_config", fields)[name]
        assert name in refused(fields)
    fields = layout()
    text = fields.get("text_config", fields)
    rope = text.get("rope_parameters") or text["rope_scaling"]
    theta = (rope if "rope_theta" in rope else text).pop("rope_theta")
    assert "rope_theta is missing" in refused(fields)
    text["rope_theta"] = theta
    del rope["mrope_section"]
    assert "mrope_section is missing" in refused(fields)


def test_a_null_counts_as_missing():
    fields = flat()
    fields["vision_config"]["depth"] = None
    assert "vision_config.depth is missing" in refused(fields)


@pytest.mark.parametrize(
    "path, value, expected",
    [
        (("model_type",), "qwen2_vl", "model_type is 'qwen2_vl', expected one of ['qwen2_5_vl']"),
        (("hidden_act",), "gelu", "hidden_act is 'gelu', expected one of ['silu']"),
        (("use_sliding_window",), True, "use_sliding_window is True, expected one of [False]"),
        (("rope_scaling", "type"), "yarn", "rope_scaling.type is 'yarn', expected one of ['mrope', 'default']"),
        (("rope_scaling", "mrope_section"), [2, 3, 4], "mrope_section is [2, 3, 4], expected three that add up to 8"),
        (("rope_scaling", "mrope_section"), [4, 4], "mrope_section is [4, 4], expected three that add up to 8"),
        (("num_key_value_heads",), 2, "num_attention_heads is 3, expected a multiple of num_key_value_heads (2)"),
        (("vision_config", "hidden_act"), "gelu", "vision_config.hidden_act is 'gelu', expected one of ['silu']"),
        (("vision_config", "num_heads"), 5, "vision_config.hidden_size is 32, expected a multiple of 4 * num_heads"),
        (("num_attention_heads",), 0, "num_attention_heads is 0, expected a whole number from 1 to 1024"),
        (("vision_config", "depth"), "3", "vision_config.depth is '3', expected a whole number from 1 to 1024"),
        (("num_hidden_layers",), 4.5, "num_hidden_layers is 4.5, expected a whole number"),
        (("num_hidden_layers",), 10**9, "num_hidden_layers is 1000000000, expected a whole number from 1 to 1024"),
        (("num_hidden_layers",), True, "num_hidden_layers is True, expected a whole number"),
        (("hidden_size",), [64], "hidden_size is [64], expected a whole number"),
        (("rope_theta",), "abc", "rope_theta is 'abc', expected a number from 1 to 1e+12"),
        (("rope_theta",), float("nan"), "rope_theta is nan, expected a number"),
        (("rope_theta",), -1e6, "rope_theta is -1000000.0, expected a number"),
        (("rms_norm_eps",), float("nan"), "rms_norm_eps is nan, expected a number from 0 to 1"),
        (("rope_scaling",), ["mrope"], "rope_scaling is ['mrope'], expected an object"),
        (("rope_scaling", "mrope_section"), ["2", "3", "3"], "expected a list of whole numbers"),
        (("rope_scaling", "mrope_section"), [-4, 6, 6], "expected a list of whole numbers"),
        (("rope_scaling", "mrope_section"), 8, "mrope_section is 8, expected a list of whole numbers"),
        (("vision_config",), [1], "vision_config is [1], expected an object"),
        (("text_config",), None, "text_config is None, expected an object"),
        (("vision_config", "fullatt_block_indexes"), 7, "fullatt_block_indexes is 7, expected a list"),
        (("vision_config", "fullatt_block_indexes"), [1, 99], "expected a list of whole numbers from 0 to"),
        (("vision_config", "fullatt_block_indexes"), [[1, 3]], "expected a list of whole numbers"),
        (("vision_config", "window_size"), 10, "window_size is 10, expected a multiple of patch_size"),
        (("head_dim",), "16", "head_dim is '16', expected a whole number"),
        (("tie_word_embeddings",), "false", "tie_word_embeddings is 'false', expected true or false"),
        (("quantization_config",), {"quant_method": "awq"}, "the checkpoint is quantised (awq)"),
        (("vision_config", "out_hidden_size"), 40, "vision_config.out_hidden_size is 40, expected hidden_size 48"),
    ],
)
def test_a_value_that_the_network_does_not_implement_is_refused(path, value, expected):
    fields = copy.deepcopy(flat())
    node = fields
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    assert expected in refused(fields)


def test_an_unknown_latent_head_is_refused():
    assert "lvr_head_type is 'deep'" in refused(flat() | {"lvr_head": True, "lvr_head_type": "deep"})


def test_latent_fields_are_read_and_a_switched_off_head_is_none():
    config = Config.from_hf(flat() | {"lvr_head": True, "lvr_head_type": "glu", "latent_end_token": True}, SOURCE)
    assert (config.latent_head, config.latent_end_embedding) == ("glu", True)
    assert Config.from_hf(flat() | {"lvr_head": False, "lvr_head_type": "glu"}, SOURCE).latent_head == "none"


def test_tied_on_either_level_means_tied():
    fields = nested()
    del fields["tie_word_embeddings"]
    fields["text_config"]["tie_word_embeddings"] = True
    assert Config.from_hf(fields, SOURCE).text.tied
    fields["tie_word_embeddings"] = False
    assert Config.from_hf(fields, SOURCE).text.tied


def test_old_names_of_vision_fields_are_read():
    fields = flat()
    vision = fields["vision_config"]
    vision["spatial_patch_size"], vision["in_chans"] = vision.pop("patch_size"), vision.pop("in_channels")
    assert Config.from_hf(fields, SOURCE) == tiny_config()


@pytest.mark.parametrize(
    "size, text, vision",
    [
        ("3b", (2048, 36, 16, 2, 11008, 151936, True), 3420),
        ("7b", (3584, 28, 28, 4, 18944, 152064, False), 3420),
        ("32b", (5120, 64, 40, 8, 27648, 152064, False), 3456),
        ("72b", (8192, 80, 64, 8, 29568, 152064, False), 3456),
    ],
)
def test_published_sizes(size, text, vision):
    c = SIZES[size]
    t, v = c.text, c.vision
    assert (t.hidden, t.layers, t.heads, t.kv_heads, t.intermediate, t.vocab, t.tied) == text
    assert (t.head_width, t.mrope_section, t.rope_theta) == (128, (16, 24, 24), 1e6)
    assert (v.depth, v.hidden, v.heads, v.head_width, v.slots, v.tokens_per_second) == (32, 1280, 16, 80, 64, 2)
    assert (v.intermediate, v.out_hidden, v.full_attention_layers) == (vision, t.hidden, (7, 15, 23, 31))
