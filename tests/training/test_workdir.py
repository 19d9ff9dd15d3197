"""A workdir belongs to what was trained there, to nothing that was refused, and to one config only."""

import json

import pytest
import runs
from etils import epath

from lvr_jax.checkpoints import CheckpointError
from lvr_jax.data.sample import DataError
from lvr_jax.training import checkpointing
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.loop import train
from lvr_jax.training.workdir import read_config, refuse_other, resolved, write_config


def test_a_run_goes_on_with_its_own_config_and_with_changes_of_how_it_runs(tmp_path):
    folder, config = epath.Path(tmp_path), runs.small()
    assert read_config(folder) is None
    write_config(folder, config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    refuse_other(folder, read_config(folder), runs.small(checkpoint__every=7, export__dtype="float32", log__every=3))
    with pytest.raises(ConfigFieldError, match="holds a run with seed = 42, this config has 7; choose another workdir"):
        refuse_other(folder, read_config(folder), runs.small(seed=7))


def test_a_run_of_before_a_field_came_goes_on_where_the_field_changes_nothing(tmp_path):
    """What an older checkout wrote has no `latent_head` and no `mask_share`."""
    with_head = runs.small(latent_head="glu")
    masked = {"digits": {"kind": "digit_search", "size": 8, "split": "train", "mask_box": True, "mask_share": 1.0}}
    own = runs.small(data__sources=masked)
    held = resolved(own)
    del held["latent_head"], held["data"]["sources"]["digits"]["mask_share"]
    refuse_other(tmp_path, held, own)
    with pytest.raises(ConfigFieldError, match="latent_head = None, this config has 'glu'"):
        refuse_other(tmp_path, {k: v for k, v in resolved(with_head).items() if k != "latent_head"}, with_head)
    masked["digits"]["mask_share"] = 0.5
    with pytest.raises(ConfigFieldError, match="mask_share = None, this config has 0.5"):
        refuse_other(tmp_path, held, runs.small(data__sources=masked))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a":', "3", "[" * 100_000])
def test_a_damaged_config_is_one_line_that_names_it(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigFieldError, match="config.json") as error:
        read_config(epath.Path(tmp_path))
    assert "\n" not in str(error.value)


def test_a_refused_run_claims_nothing(tmp_path):
    with pytest.raises(DataError, match="shards = 3"):
        train(runs.small(shards=3), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["data", "held_out"])
def test_data_that_is_refused_leaves_no_folder(tmp_path, place):
    digits = {"digits": {"kind": "digit_search", "size": 8, "split": "train", "mask_box": False, "mask_share": 0.5}}
    changes = {f"{place}__sources": digits, "held_out__every": 1}
    with pytest.raises(DataError, match="DigitSearch.mask_share = 0.5: expected 1 without mask_box"):
        train(runs.small(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_config_or_damaged_is_one_line(tmp_path, monkeypatch):
    """The workdir's config.json is gone: the checkpoint says what it is of."""
    place = tmp_path / "checkpoints" / "2"
    (place / "run").mkdir(parents=True)
    (place / "state").mkdir()
    (place / "_CHECKPOINT_METADATA").write_text("{}")
    run = {"step": 2, "data": [], "config": {**resolved(runs.small()), "seed": 7}, "versions": {}}
    (place / "run" / "metadata").write_text(json.dumps(run))
    with pytest.raises(ConfigFieldError, match="checkpoints/2: holds a run with seed = 7, this config has 42"):
        train(runs.small(), tmp_path)
    (place / "run" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints/2: damaged, cannot be read") as error:
        checkpointing.read_run(epath.Path(tmp_path / "checkpoints"), 2)
    assert "\n" not in str(error.value)
