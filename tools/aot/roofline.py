"""How fast a program can be at best: the compiler's plan, and the time that each unit of a chip needs at its peak.

The plan is the compiler's cycles at the chip's clock, with what the compiler says nothing of: Pallas kernels, from
their FLOPs at the matrix unit's peak (heads filled up to the unit's width), and collectives that nothing runs beside,
from their bytes at the peak of the links. Real kernels of this kind reach 36 to 60 % of the peak, so the plan is a
bound and not a forecast. The roofline is coarser: products and kernels at the
peak, bytes at the bandwidth of HBM and of the links between chips, the largest of the three.
"""

import dataclasses
from collections.abc import Sequence

from aot.arithmetic import Kernel
from aot.collectives import Collective
from lvr_jax.training.flops import PEAK


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of what JAX calls a device: half a chip of tpu7x, else a chip.

    hbm: bytes/s; link: bytes/s one way of one link; clock: Hz of the matrix units, the peak by the FLOPs of a cycle;
    unit: width of a matrix unit; axes: of the torus; wraps: an axis of a multiple of so many chips is a ring
    """

    hbm: float
    link: float
    clock: float
    unit: int
    axes: int
    wraps: int


# cloud.google.com/tpu/docs, 2026-11; libtpu's own cost model has the same peaks.
CHIPS = {
    "TPU v5 lite": Chip(819e9, 50e9, 1.5e9, 128, 2, 16),
    "TPU v5": Chip(2765e9, 100e9, 1.75e9, 128, 3, 4),
    "TPU v6 lite": Chip(1638e9, 100e9, 1.75e9, 256, 2, 16),
    "TPU7x": Chip(3690e9, 50e9, 2.2e9, 256, 3, 4),
}


def links(sizes: Sequence[int], chip: Chip) -> int:
    """Links of the chip that has the fewest. A slice is closed to rings along axes of full length (v5e and v6e: 16; the
    others: where all three are multiples of four)."""
    closed = chip.axes == 2 or all(size % chip.wraps == 0 for size in sizes)
    return sum(2 if closed and size % chip.wraps == 0 else 1 for size in sizes if size > 1) or 1


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run. plan: the compiler's cycles, kernels and exposed collectives (None where it has no cycles);
    useful: model FLOPs at the peak (None where they are not counted)."""

    plan: float | None
    kernels: float
    exposed: float
    mxu: float
    hbm: float
    ici: float
    useful: float | None

    @property
    def bound_by(self) -> str:
        """The unit that is busy longest."""
        units = {"MXU": self.mxu, "HBM": self.hbm, "ICI": self.ici}
        return max(units, key=lambda unit: units[unit])

    @property
    def mfu(self) -> float | None:
        """The bound that the plan sets on model FLOPs utilisation."""
        return None if self.useful is None or self.plan is None else self.useful / self.plan

    @property
    def roof(self) -> float | None:
        """The bound that the units' peaks set."""
        return None if self.useful is None else self.useful / max(self.mxu, self.hbm, self.ici)


def roofline(
    kind: str, topology: Sequence[int], devices: int, *, cycles: float | None, products: float,
    kernels: Sequence[tuple[Kernel, float]], hbm_bytes: float, moved: Sequence[Collective], model_flops: float | None,
) -> Roofline:  # fmt: skip
    """kernels: each with the pairs (query, key) that a head computes a call; model_flops: of all devices together."""
    chip, peak = CHIPS[kind], PEAK[kind]
    inside = sum(kernel.flops(pairs, chip.unit) for kernel, pairs in kernels) / peak
    # What a chip sends: a sum is a scatter and a gather.
    sent = [(c, c.bytes * (2 if c.kind == "all-reduce" else 1)) for c in moved if not c.between_slices]
    speed = links(topology, chip) * chip.link
    exposed = sum(size for c, size in sent if c.exposed) / speed
    return Roofline(
        plan=None if cycles is None else cycles / chip.clock + inside + exposed, kernels=inside, exposed=exposed,
        mxu=products / peak + inside,
        hbm=hbm_bytes / chip.hbm, ici=sum(size for _, size in sent) / speed,
        useful=None if model_flops is None else model_flops / (peak * devices),
    )  # fmt: skip


def sizes(topology: str) -> tuple[int, ...]:
    """`v5e:4x4*2` -> (4, 4), of one slice."""
    return tuple(int(n) for n in topology.partition(":")[2].partition("*")[0].split("x"))

