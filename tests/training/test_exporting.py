"""An exported run carries what the released code and the audit need to know of its layout."""

import importlib.util
import json
from pathlib import Path

import pytest
from runs import small

from lvr_jax import checkpoints
from lvr_jax.data.layout_fields import layout_of
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.latents.spec import system, with_head_at
from lvr_jax.prism import experiment as prism
from lvr_jax.prism.measure.items import template_for
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.exporting import exported_fields
from lvr_jax.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
BASELINE = {"plvr_mode": False, "include_free_stage": False, "free_id": None}
STAGED = {"plvr_mode": True, "include_free_stage": False, "num_free_tokens": 6}
PLAIN = {"loss_lvr_fct": "mse", "lvr_head": False, "latent_end_token": False, "nlvr_mode": False,
         "nlvr_noise_scale": 0.0}  # fmt: skip
# By variant, what the released code reads (its model class) or writes (its trainer); ids of the tokenizer aside.
FIELDS = {
    "lvr": BASELINE | PLAIN, "n_lvr": BASELINE | PLAIN | {"nlvr_mode": True, "nlvr_noise_scale": 0.3},
    "d_lvr": BASELINE | PLAIN, "p_lvr_2": STAGED | PLAIN, "p_lvr_3": STAGED | PLAIN | {"include_free_stage": True},
}  # fmt: skip
IDS = {"lvr_start_id": 394, "lvr_id": 395, "lvr_latent_end_id": 396, "lvr_end_id": 397}
STAGE_IDS = {"ctx_start_id": 398, "ctx_end_id": 399, "free_start_id": 400, "free_end_id": 401, "tgt_start_id": 402,
             "tgt_end_id": 403, "free_id": 404}  # fmt: skip


@pytest.mark.parametrize("variant", FIELDS)
def test_config_json_has_every_field_that_the_released_code_reads(variant):
    expected = FIELDS[variant] | IDS | (STAGE_IDS if variant.startswith("p_lvr") else {})
    assert exported_fields(Experiment.from_config(small(variant))) == expected


def test_a_run_does_not_inherit_the_layout_of_its_base(tmp_path):
    """A base without latents, trained behind a bottleneck: an `lvr` run from it is an ordinary `lvr` checkpoint."""
    train(small("sft", steps=0, checkpoint__export=True, objective__attention="bottleneck"), tmp_path / "base")
    base = tmp_path / "base" / "export"
    assert {"lvr_layout", "lvr_attention"} <= set(json.loads((base / "hf" / "config.json").read_text()))
    train(small("lvr", steps=0, checkpoint__export=True, init__checkpoint=str(base)), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "export" / "hf" / "config.json").read_text())
    assert not {"lvr_layout", "lvr_attention"} & set(said)
    assert layout_of(said, 1, "x") == TEMPLATES["lvr"]


def test_a_head_that_a_run_gave_its_network_is_read_back_as_that_head_and_where_it_was_applied(tmp_path):
    """Whatever kind the config.json of its base names for the head that it lacks. Released inference code, whose way is
    taken where config.json says nothing, applies a head elsewhere than training does."""
    base = ROOT / "lvr_jax/assets/tiny"
    assert json.loads((base / "config.json").read_text())["lvr_head_type"] == "simple"
    train(small("lvr", steps=0, checkpoint__export=True, latent_head="glu", init__checkpoint=str(base),
                data__tokenizer=""), tmp_path)  # fmt: skip
    assert checkpoints.read_config(tmp_path / "export").latent_head == "glu"
    assert open_subject(tmp_path / "export").spec.head_at == "predictors"
    assert open_subject(base).spec.head_at == "outputs"
    assert with_head_at(system("lvr"), {"lvr_head_at": None}, "config.json") == system("lvr")


def config(**fields):
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.get_config()
    made.update_from_flattened_dict(fields)
    return made


def test_an_exported_p_lvr_3_is_audited_in_its_own_layout_without_being_told(tmp_path):
    train(small("p_lvr_3", steps=0, checkpoint__export=True), tmp_path / "run")
    folder = tmp_path / "run" / "export"
    c = config(checkpoint=str(folder), benchmark="digit_search", options="size=2, options=2", rows=2)
    audit = prism.prepare(c, prism.settings_of(c), c.checkpoint, "p_lvr_3", tmp_path / "audit", False, print)
    assert audit.items.template == TEMPLATES["p_lvr_3"] and not audit.items.lacks_targets
    # Without the field there is no telling it from P-LVR-2, unless it is said.
    path = folder / "hf" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "include_free_stage"}))
    with pytest.raises(BenchmarkError, match="include_free_stage None; expected .*alignment.template"):
        prism.prepare(c, prism.settings_of(c), c.checkpoint, "p_lvr_3", tmp_path / "audit", False, print)
    c.alignment.template = "p_lvr_3"
    told = prism.prepare(c, prism.settings_of(c), c.checkpoint, "p_lvr_3", tmp_path / "audit", False, print)
    assert told.items.template == TEMPLATES["p_lvr_3"]
    with pytest.raises(BenchmarkError, match="alignment.template is 'none', expected one of lvr"):
        template_for(told.items.subject, "none")
