"""The registry of model families, and what can be asked of any config through its family."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models import weight_table
from lvr_jax.models.interface import Config, ConfigError, Family, Rules
from lvr_jax.models.qwen2_5_vl.family import FAMILY as QWEN2_5_VL
from lvr_jax.models.weight_table import Slot

FAMILIES: dict[str, Family] = {family.name: family for family in (QWEN2_5_VL,)}


def family_of(config: Config) -> Family:
    """The family of a config."""
    return FAMILIES[config.family]


def read_config(fields: Mapping[str, Any], source: str = "config.json") -> Config:
    """Reads a parsed config.json of any family. Raises ConfigError naming `source`, the field and its value.

    A file without `model_type` is taken for Qwen2.5-VL's, whose fields it must then have.
    """
    name = fields.get("model_type", QWEN2_5_VL.name)
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"{source}: model_type is {name!r}, expected one of {sorted(FAMILIES)}")
    return FAMILIES[name].read_config(fields, source)


def sizes() -> dict[str, Config]:
    """The published networks of all families by name, for shapes alone."""
    return {name: config for family in FAMILIES.values() for name, config in family.sizes.items()}


def rules(config: Config) -> Rules:
    """How the parameters of a config are spread over a mesh."""
    return family_of(config).rules


def slots(config: Config) -> dict[str, Slot]:
    """Every tensor that a Hugging Face checkpoint of this config holds, by canonical name."""
    return family_of(config).slots(config)


def leaves(config: Config) -> dict[str, list[tuple[str, Slot]]]:
    """Parameters by path: the Hugging Face tensors (name, slot) that make each, in the order of layers."""
    return weight_table.leaves(slots(config))


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by path."""
    return weight_table.shapes(slots(config))


def random_params(config: Config, seed: int) -> dict:
    """Parameters as an untrained network draws them, fp32, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(family_of(config).build(nnx.Rngs(seed), config)))


def abstract_model(config: Config, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """The network's structure, and its parameters as a nested dict of ShapeDtypeStructs; nothing is allocated.

    The dict, filled with arrays, is what checkpoints hold and jitted functions take: `nnx.merge(graph, params)` is
    the network (interface.Network).
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: family_of(config).build(nnx.Rngs(0), config)))
    return graph, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), nnx.to_pure_dict(state))
