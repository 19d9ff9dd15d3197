"""Every parameter has one place, and every rule a use."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.models.families import abstract_model
from lvr_jax.models.qwen2_5_vl.config import SIZES
from lvr_jax.models.qwen2_5_vl.sharding import RULES
from lvr_jax.training.partitioning import MeshError, make_mesh, matching, specs

HEADS = ("none", "simple", "glu")
NETWORKS = {
    f"{size} {head}": dataclasses.replace(config, latent_head=head, latent_end_embedding=head != "none")
    for size, config in SIZES.items()
    for head in HEADS
}


def paths(config) -> list[str]:
    return list(flat(abstract_model(config)[1]))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_matches_exactly_one_rule(name):
    found = {path: matching(RULES, path) for path in paths(NETWORKS[name])}
    assert {path: rules for path, rules in found.items() if len(rules) != 1} == {}


def test_every_rule_matches_a_parameter():
    used = {rule for config in NETWORKS.values() for path in paths(config) for rule in matching(RULES, path)}
    assert [RULES[i][0] for i in range(len(RULES)) if i not in used] == []


class Shape:
    """A mesh of sizes without devices: rules look no further."""

    def __init__(self, **sizes):
        self.shape = sizes


def test_every_matrix_of_the_3b_network_is_cut_by_fsdp_and_tensor():
    """What stays whole is small: norms, biases of the residual stream, key and value heads beyond two devices."""
    params = abstract_model(SIZES["3b"])[1]
    found, whole = specs(params, RULES, Shape(data=1, fsdp=16, tensor=2))
    assert whole == []
    for path, x in flat(params).items():
        axes = set(found[path]) - {None}
        if x.size > 2**20 and "patch_embed" not in path:
            assert axes == {"fsdp", "tensor"}, path
    assert found["text/blocks/q"] == PartitionSpec(None, "fsdp", "tensor")


def test_key_and_value_heads_stay_whole_where_devices_outnumber_them():
    found, whole = specs(abstract_model(SIZES["3b"])[1], RULES, Shape(data=1, fsdp=1, tensor=8))
    assert found["text/blocks/k"] == PartitionSpec(None, "fsdp", None)
    text = [note.split(":")[0] for note in whole if note.startswith("text")]
    assert text == [f"text/blocks/{x}" for x in ("k", "k_bias", "v", "v_bias")]
    # The tower's inner width, 3,420, does not divide by eight either.
    assert {note.split(":")[1].split()[3] for note in whole if note.startswith("vision")} == {"3420"}


def test_a_parameter_without_a_rule_is_named():
    params = {"text": {"surprise": jax.ShapeDtypeStruct((4,), np.float32)}}
    with pytest.raises(MeshError, match="text/surprise matches 0 sharding rules"):
        specs(params, RULES, Shape(data=1, fsdp=1, tensor=1))


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"tensor": 3, "fsdp": -1}, "tensor=3 does not divide 4 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"model": 2}, "axis 'model' does not exist, expected data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(shape, message):
    with pytest.raises(MeshError, match=message) as error:
        make_mesh(shape, jax.devices()[:1] * 4)
    assert "\n" not in str(error.value)
