"""TPU slices such as `v5e:4x4` and what their chips hold, asked of libtpu's compiler, which needs no TPU."""

import dataclasses
import functools
import importlib.util
import math
import os
import re

# Before JAX is imported: nothing is looked for on the network, several processes may compile, and arrays stay on CPUs.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",      # any will do; without these two libtpu complains on stderr
    "TPU_WORKER_HOSTNAMES": "localhost",
}
NAME = re.compile(r"(?P<topology>\w+:\d+(x\d+)*)(\*(?P<slices>\d+))?")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class SliceError(ValueError):
    """A slice that libtpu does not know, or no libtpu to ask."""


def available() -> bool:
    """Whether libtpu can be loaded."""
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """name: as libtpu calls its topologies, `*2` for two of them joined by a data-centre network; devices: its own."""

    name: str
    devices: tuple

    @classmethod
    def parse(cls, name: str) -> "Slice":
        from jax.experimental.topologies import get_topology_desc

        parts = NAME.fullmatch(name)
        if parts is None:
            raise SliceError(f"topology {name!r}: expected GENERATION:AxB[xC], such as v5e:4x4, v5p:2x2x4 or v6e:8x8*2")
        if not available():
            raise SliceError("libtpu is not installed, which compiles for TPUs: pip install -e '.[tpu]'")
        try:
            found = get_topology_desc(parts["topology"], "tpu", num_slices=int(parts["slices"] or 1))
        except Exception as error:      # the plugin raises a bare RuntimeError of its own
            raise SliceError(f"topology {name!r}: {str(error).splitlines()[0]}") from error
        return cls(name, tuple(found.devices))

    @property
    def product(self) -> str:
        """As Google sells it: v5p is counted by cores, two a chip."""
        generation, _, rest = self.name.partition(":")
        sizes, _, slices = rest.partition("*")
        chips = math.prod(map(int, sizes.split("x")))
        shown = f"{generation}-{chips * (2 if generation in ('v4', 'v5p') else 1)}"
        return f"{slices} x {shown}" if slices else shown

    @functools.cached_property
    def memory(self) -> int:
        """Bytes of HBM that a program may take on one device: what the compiler says when one asks for far too many."""
        import jax
        import jax.numpy as jnp

        where = jax.sharding.SingleDeviceSharding(self.devices[0])
        huge = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=where)
        try:
            jax.jit(lambda x: x + 1).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            return memory_error(str(error))[1]
        raise SliceError(f"topology {self.name}: the compiler takes a program of 8 TiB")


def memory_error(message: str) -> tuple[int, int]:
    """(bytes needed, bytes there) of the compiler's refusal. ValueError if it is about something else."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message, re.IGNORECASE)
    found = found or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        raise ValueError(message)
    needed, unit, there, unit_there = found.groups()
    return int(float(needed) * UNITS[unit]), int(float(there) * UNITS[unit_there])
