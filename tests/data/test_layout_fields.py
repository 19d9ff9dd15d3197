"""config.json says how a checkpoint's latent blocks are laid out, in the words of the released code."""

import dataclasses
import json
from pathlib import Path

import pytest

from lvr_jax.data.layout_fields import LayoutError, layout_fields, layout_of
from lvr_jax.data.templates import LVR, P_LVR_2, P_LVR_3, TEMPLATES

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
IDS = {"lvr_id": 395}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_layout_is_read_back_from_what_is_written_of_it(name):
    stages = 2 if name.startswith("p_lvr") else 1
    assert layout_of(IDS | layout_fields(TEMPLATES[name]), stages, "x") == TEMPLATES[name]


def test_another_number_of_free_tokens_is_another_layout():
    stages = tuple(dataclasses.replace(s, free_tokens=3) if s.free_tokens else s for s in P_LVR_3.stages)
    fewer = dataclasses.replace(P_LVR_3, stages=stages)
    assert layout_fields(fewer)["num_free_tokens"] == 3
    assert layout_of(IDS | layout_fields(fewer), 2, "x") == fewer != P_LVR_3


@pytest.mark.parametrize("name, layout", [("tiny_tied_trained_lvr", LVR), ("tiny_tied_trained_plvr2", P_LVR_2)])
def test_what_the_released_trainer_wrote_is_understood_and_written_alike(name, layout):
    fields = json.loads((GOLDEN / name / "config.json").read_text())
    assert layout_of(fields, len(layout.stages), name) == layout
    assert {key: fields[key] for key in layout_fields(layout)} == layout_fields(layout)


def test_a_baseline_of_the_first_release_has_none_of_the_fields():
    assert layout_of(IDS, 1, "x") == LVR
    assert layout_of({"lvr_start_id": 1, "lvr_sep_id": 2}, 1, "x") is None, "LanteRn's targets are not known"


@pytest.mark.parametrize(
    "fields, message",
    [
        (IDS, "x: plvr_mode is None, include_free_stage None; expected true"),
        ({"plvr_mode": False, "include_free_stage": False}, "x: plvr_mode is False"),
        ({"plvr_mode": True}, "x: plvr_mode is True, include_free_stage None"),
        ({"plvr_mode": True, "include_free_stage": True}, "x: num_free_tokens is None"),
        ({"plvr_mode": True, "include_free_stage": True, "num_free_tokens": 0}, "x: num_free_tokens is 0"),
        ({"lvr_layout": "spiral"}, "x: lvr_layout is 'spiral', expected one of lvr"),
    ],
)
def test_a_staged_checkpoint_that_does_not_say_is_refused_in_a_line(fields, message):
    with pytest.raises(LayoutError, match=message) as error:
        layout_of(fields, 2, "x")
    assert "\n" not in str(error.value)
