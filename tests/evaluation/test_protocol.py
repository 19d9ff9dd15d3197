"""A protocol record says everything that a number depends on, and survives JSON."""

import dataclasses
import json

import pytest

from lvr_jax.evaluation import extraction
from lvr_jax.evaluation.protocol import CLEAN, PAPER, Budget, Protocol, differences, protocol
from lvr_jax.evaluation.rows import BenchmarkError


@pytest.mark.parametrize("name", ["paper", "clean"])
def test_protocol_survives_json(name):
    each = protocol(name)
    assert Protocol.from_json(json.loads(json.dumps(each.to_json()))) == each


def test_paper_keeps_the_quirks_and_clean_has_none():
    assert differences(PAPER, CLEAN) == {
        "prompts": ("prism", "clean"),                              # V*: the instruction twice, or once
        "extraction": ("lvr", "clean"),
        "corruption_extraction": ("prism", "clean"),                # accuracy and corruption runs parse differently
        "aggregation": ("prism", "clean"),
        "image_protocol": ("evaluate", "train"),                    # two resizes, or one
        "repetition_penalty": (1.05, 1.0),
        "penalise_slot_ids": (True, False),
        "staged_steps": ({"accuracy": 8, "corruption": 16, "probe": 8}, {"accuracy": 8, "corruption": 8, "probe": 8}),
        "mmvp_key": ("original", "corrected"),
    }


def test_paper_parses_an_untagged_letter_in_accuracy_runs_only():
    accuracy, corruption = (extraction.rule_name(harness, "vstar")
                            for harness in (PAPER.extraction, PAPER.corruption_extraction))
    assert extraction.extract(accuracy, "A", {"A": "red"}) == "A"
    assert extraction.extract(corruption, "A", {"A": "red"}) is None


def test_lexicographic_mmvp_order_is_an_explicit_switch():
    assert PAPER.loader_options("mmvp") == {"order": "index", "key": "original"}
    misaligned = protocol("paper", mmvp_order="lexicographic")
    assert misaligned.loader_options("mmvp") == {"order": "lexicographic", "key": "original"}
    assert misaligned.name == "paper, mmvp_order=lexicographic"
    assert CLEAN.loader_options("mmvp") == {"order": "index", "key": "corrected"}
    assert CLEAN.loader_options("vstar") == {}


def test_a_switch_set_to_its_own_value_changes_nothing():
    assert protocol("clean", repetition_penalty=1.0) == CLEAN


@pytest.mark.parametrize("switches, message", [
    ({"mmvp_order": "random"}, "mmvp_order is 'random', expected one of index, lexicographic"),
    ({"extraction": "gpt4"}, "extraction is 'gpt4', expected one of lvr, prism"),
    ({"image_protocol": "none"}, "image_protocol is 'none', expected one of train, evaluate, processor"),
    ({"repetition_penalty": float("inf")}, "repetition_penalty is inf, expected a number above 0"),
    ({"steps": 5}, "steps is 5, expected a budget"),
    ({"extraction": ["clean"]}, "extraction is .'clean'., expected one of"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number above 0"),
    ({"steps": Budget(8, 0, 8)}, "steps.corruption is 0, expected a whole number above 0"),
    ({"steps": Budget(5000, 8, 8)}, "steps.accuracy is 5000, expected a whole number above 0 and up to 4096"),
    ({"max_new_tokens": 10**9}, "max_new_tokens is 1000000000, expected a whole number above 0 and up to 128000"),
    ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5, expected a whole number"),
    ({"temperature": 1}, "no switch 'temperature', expected some of prompts"),
])
def test_a_wrong_switch_is_refused_by_name(switches, message):
    with pytest.raises(BenchmarkError, match=message):
        protocol("paper", **switches)


def test_unknown_protocol_is_refused_by_name():
    with pytest.raises(BenchmarkError, match="no protocol 'strict', expected one of paper, clean"):
        protocol("strict")


@pytest.mark.parametrize("change, message", [
    (lambda record: record | {"seed": 1}, "protocol 'clean': unknown field seed"),
    (lambda record: {k: v for k, v in record.items() if k != "mmvp_key"}, "protocol 'clean': missing field mmvp_key"),
    (lambda record: record | {"steps": {"accuracy": 8}}, "protocol 'clean': budget .*missing 2 required"),
])
def test_a_stored_protocol_with_other_fields_is_refused(change, message):
    with pytest.raises(BenchmarkError, match=message):
        Protocol.from_json(change(CLEAN.to_json()))


def test_protocol_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.extraction = "clean"
