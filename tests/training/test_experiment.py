"""What `auto` in a config's `compute` resolves to, by platform and chip."""

import jax.numpy as jnp
import pytest

from configs import lvr
from lvr_jax.latents.objectives import Objective
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.experiment import compute_of


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
