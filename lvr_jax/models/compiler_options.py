"""Options that XLA compiles the programs of this package with: one table by kind of chip.

They travel with each program (`jax.jit(..., compiler_options=...)`), so that a program compiled ahead of time for a
slice that is not here (tools/compile_check.py) is the one that runs there. libtpu 0.0.42.1 takes all of them this way;
nothing is set in LIBTPU_INIT_ARGS.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

Options = Mapping[str, bool | int | float | str]

# From this size on (MiB), a gather of weights and the product that uses them become a ring of partial products, each of
# which reads and writes the whole result. By libtpu's own estimate this never pays here: with it, a step of 3B on
# v5e-16 takes twice the cycles outside of attention, and it adds the parts up in bf16 (2026-11).
_NO_RINGS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}

# By jax.Device.device_kind. A kind that is not listed (CPU, GPU, older TPUs) has XLA's defaults.
TABLE: Mapping[str, Options] = {
    "TPU v5 lite": _NO_RINGS,
    "TPU v5": _NO_RINGS,
    "TPU v6 lite": _NO_RINGS,
    "TPU7x": _NO_RINGS,
}


# XLA for CPUs multiplies no bf16: it widens weights where they are used, and this pass then moves that out of the loop
# over layers, so that whole stacks stand in fp32 beside the checkpoint, twice its size (2026-11, jax 0.10.2).
_NARROW_ON_CPU = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def of_kind(device_kind: str) -> dict[str, Any]:
    """XLA options for a chip, as jax.Device.device_kind calls it; {} where it needs none."""
    return dict(TABLE.get(device_kind, {}))


def of_mesh(mesh: Mesh) -> dict[str, Any]:
    """The options of programs that run on this mesh."""
    return of_kind(mesh.devices.flat[0].device_kind)


class Jit:
    """`jax.jit` of a function of a module, which cannot know yet what it will be compiled for.

    It has the options of the chips of the current mesh (`jax.set_mesh`), else those of the default device, and on a CPU
    those for arguments in bf16, if there are such.
    """

    def __init__(self, function: Callable, **keywords):
        self._with = functools.cache(
            lambda options: jax.jit(function, compiler_options=dict(options), **keywords)
        )

    @property
    def here(self) -> Any:
        """The function jitted with the options of the current devices."""
        return self._for((), {})

    def _for(self, args, keywords) -> Any:
        chip = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
        options = of_kind(chip.device_kind)
        if chip.device_kind == "cpu":
            types = {getattr(leaf, "dtype", None) for leaf in jax.tree.leaves((args, keywords))}
            options |= _NARROW_ON_CPU if jnp.dtype(jnp.bfloat16) in types else {}
        return self._with(tuple(options.items()))

    def __call__(self, *args, **keywords):
        return self._for(args, keywords)(*args, **keywords)

    def lower(self, *args, **keywords) -> jax.stages.Lowered:
        return self._for(args, keywords).lower(*args, **keywords)

    def eval_shape(self, *args, **keywords) -> Any:
        return self._for(args, keywords).eval_shape(*args, **keywords)

    def _cache_size(self) -> int:
        """Compiled programs, as a jitted function counts them."""
        return self.here._cache_size()
