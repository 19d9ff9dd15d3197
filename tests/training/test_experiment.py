"""What `auto` in a config's `compute` resolves to, by platform and chip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT, small

from configs import lvr
from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.latents.objectives import Objective
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.experiment import Experiment, compute_of
from lvr_jax.training.state import join


@pytest.mark.parametrize(
    "size, device_kind, remat",
    [
        ("3b", "TPU v5 lite", "attention"), ("7b", "TPU v6 lite", "attention"), ("7b", "NVIDIA H100", "attention"),
        ("7b", "TPU v5", "dots_attention"), ("3b", "TPU7x", "dots_attention"), ("72b", "TPU v5", "block"),
    ],
)  # fmt: skip
def test_chips_with_room_keep_projections(size, device_kind, remat):
    """Of 3 and 7 billion parameters; larger networks need the room for themselves."""
    found = compute_of(lvr.get_config(size).compute, Objective(), False, "tpu", device_kind)
    assert (found.remat, found.dtype, found.attention) == (remat, jnp.dtype("bfloat16"), "splash")


def test_a_remat_that_does_not_exist_is_refused_by_name():
    fields = {**lvr.get_config("3b").compute, "remat": "everything"}
    with pytest.raises(ConfigFieldError, match="compute.remat is 'everything', expected 'auto' or one of"):
        compute_of(fields, Objective(), False, "tpu")


def started(**changes) -> dict:
    """The parameters at the start of a run from the shipped base."""
    c = small(init__checkpoint=str(ROOT / "lvr_jax/assets/tiny"), data__tokenizer="", **changes)
    experiment = Experiment.from_config(c)
    with jax.set_mesh(experiment.mesh):
        state = experiment.initial_state()
    return {path: np.asarray(x) for path, x in flat(join(state.trained, state.frozen)).items()}


def test_a_latent_head_that_the_config_adds_is_drawn_and_the_rest_is_the_checkpoints():
    plain, headed = started(), started(latent_head="glu", objective__route="head_only")
    assert all(np.array_equal(plain[path], headed[path]) for path in plain)
    new = set(headed) - set(plain)
    assert new and all(path.startswith("latent_head/") for path in new)
    assert np.abs(headed["latent_head/down"]).max() > 0


@pytest.mark.parametrize("changes, said", [
    ({"latent_head": "big"}, "latent_head is 'big', expected '' or 'simple' or 'glu': the checkpoint's is 'none'"),
    ({"objective__route": "head_only"}, "objective.route is 'head_only' and the network has no latent head: expected"),
])  # fmt: skip
def test_a_head_that_cannot_be_is_refused_by_name(changes, said):
    with pytest.raises(ConfigFieldError, match=said):
        Experiment.from_config(small(**changes))
