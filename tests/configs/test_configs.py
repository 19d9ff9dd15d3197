"""Holds every config to a golden dump of what it resolves to, so that a changed default shows up in review.

    python tests/configs/test_configs.py --write        # after a change that is meant
"""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DUMPS = ROOT / "tests/golden/configs"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

SIZES = ("3b", "7b", "tiny")
VARIANTS = ("lvr", "n_lvr", "d_lvr", "p_lvr_2", "p_lvr_3")
CONTROLS = (
    "base", "sft", "sft_markers", "lvr_pooled", "lambda_zero", "random_target", "shuffled_target", "p_lvr_2_matched",
    "p_lvr_3_matched", "latent_only_gradient", "outside_only_gradient", "rollout", "scheduled", "masked_input",
    "bottleneck",
)  # fmt: skip


def resolved(name: str, size: str) -> dict:
    config = importlib.import_module(f"configs.{name}").get_config(size)
    return json.loads(config.to_json(sort_keys=True))


def dump(name: str) -> str:
    """The tiny config in full; of the others what differs from it, so that one change is one line."""
    tiny = resolved(name, "tiny")
    found = {size: _differences(resolved(name, size), tiny) for size in SIZES if size != "tiny"}
    return json.dumps({"tiny": tiny, **found}, indent=1, sort_keys=True) + "\n"


def _differences(own: dict, other: dict, where: str = "") -> dict:
    found = {}
    for key in sorted({**own, **other}):
        a, b, name = own.get(key), other.get(key), f"{where}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= _differences(a, b, f"{name}.")
        elif a != b:
            found[name] = a
    return found


@pytest.mark.parametrize("name", VARIANTS + CONTROLS)
def test_a_config_resolves_to_its_recorded_dump(name):
    assert dump(name) == (DUMPS / f"{name}.json").read_text(), "if meant: python tests/configs/test_configs.py --write"


def changed(name: str, size: str = "3b") -> dict:
    return _differences(resolved(name, size), resolved("lvr", size))


def test_every_variant_differs_from_the_baseline_as_the_paper_says():
    """Sec. 4.1 of "Cosine Misleads" and its code: nothing but this, and the name."""
    weight = lambda w: {"reconstruction.points": w}  # noqa: E731
    system = {"system.name": "p_lvr", "system.budget": 16}
    expected = {
        "n_lvr": {"objective.noise": 0.3},
        "d_lvr": weight([[0.0, 0.1], [0.6, 0.0]]) | {"init.fork_at": 0.6},
        "p_lvr_2": system | {
            "data.template": "p_lvr_2", "objective.normalisation": "sum_of_means",
            "objective.stage_weights": [1.0, 1.0],
        },
        "p_lvr_3": system | {
            "data.template": "p_lvr_3", "objective.normalisation": "sum_of_means",
            "objective.stage_weights": [1.0, 0.0, 1.0], "objective.diversity": 0.01,
        },
    }  # fmt: skip
    for name, difference in expected.items():
        assert changed(name) == difference | {"name": name}, name


def test_the_baseline_is_trained_as_the_paper_says():
    c = resolved("lvr", "3b")
    assert (c["steps"], c["rows"], c["data"]["max_per_row"], c["data"]["tokens"]) == (2500, 64, 4, 16384)
    assert c["optimizer"] == {
        "peak": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "decay_rule": "official",
        "warmup_ratio": 0.03, "clip": 1.0,
    }  # fmt: skip
    assert (c["data"]["min_pixels"], c["data"]["max_pixels"]) == (128 * 28**2, 5120 * 28**2)
    assert c["reconstruction"]["points"] == [[0.0, 0.1]] and c["objective"]["distance"] == "mse"
    assert c["frozen"] == ["vision/.*"] and c["seed"] == 42


@pytest.mark.parametrize("stages", (2, 3))
def test_a_matched_control_differs_from_its_variant_in_the_normalisation_alone(stages):
    own, other = resolved(f"p_lvr_{stages}_matched", "3b"), resolved(f"p_lvr_{stages}", "3b")
    assert _differences(own, other) == {"name": own["name"], "objective.normalisation": "per_token"}


@pytest.mark.parametrize("name", VARIANTS + CONTROLS)
def test_a_config_says_what_it_is_for_what_it_costs_and_how_to_run_it(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert "Cost" in text and f"--config configs/{name}.py:" in text
    assert name in VARIANTS or text.startswith("Control: ")


@pytest.mark.parametrize("name", VARIANTS + CONTROLS)
def test_a_tiny_config_becomes_an_experiment(name):
    """Every field fits every other: objective, template, rows, alignment, tokens of the system."""
    from lvr_jax.training.experiment import Experiment

    c = importlib.import_module(f"configs.{name}").get_config("tiny")
    c.init.checkpoint, c.data.tokenizer = "", str(ROOT / "tests/golden/tokenizer.json")
    experiment = Experiment.from_config(c)
    assert len(experiment.recipe.objective.stage_weights) >= len(
        [s for s in _template(c.data.template).stages if s.box_scale is not None]
    )
    assert experiment.data.rows == c.rows


def _template(name: str):
    from lvr_jax.data.templates import TEMPLATES

    return TEMPLATES[name]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DUMPS.mkdir(parents=True, exist_ok=True)
        for name in VARIANTS + CONTROLS:
            (DUMPS / f"{name}.json").write_text(dump(name))
