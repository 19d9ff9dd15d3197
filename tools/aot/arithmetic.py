"""The matrix products of a compiled program and of its kernels, in FLOPs, loops counted as often as they run."""

import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np

from aot import bill, hlo
from aot.hlo import Array, Instruction
from lvr_jax.models import splash_attention

KERNEL = 'custom_call_target="tpu_custom_call"'
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def product_flops(each: Instruction, shapes: dict[str, Array]) -> float:
    """Of a convolution, which is what every matrix product is on a TPU; shapes: of the computation's instructions.

    Batch dimensions are spatial ones with padding and dilation, so positions outside of the operand are not counted.
    """
    left, right = (shapes[name].shape for name in each.operands[:2])
    out = each.arrays[0].shape
    a, b, c = _LABELS.search(each.line).groups()
    count = float(out[c.index("b")] * right[b.index("o")] * right[b.index("i")])
    window = _window(each.line)
    for axis in sorted(set(c) - {"b", "f"}):
        i = int(axis)
        size, stride, low, dilation, step = (window[key][i] if key in window else default for key, default in (
            ("size", 1), ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1)))  # fmt: skip
        at = np.arange(out[c.index(axis)])[:, None] * stride - low + np.arange(size) * step
        count *= int(((at >= 0) & (at <= (left[a.index(axis)] - 1) * dilation) & (at % dilation == 0)).sum())
    groups = re.search(r"batch_group_count=(\d+)", each.line)
    return 2 * count / (int(groups[1]) if groups else 1)


def _window(line: str) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", line)
    fields = (field.split("=") for field in found[1].split()) if found else ()
    return {key: [int(n.split("_")[0]) for n in value.split("x")] for key, value in fields}


def products(text: str, share: hlo.Share = hlo.all_taken) -> float:
    """FLOPs of all matrix products outside of kernels, as they run on one chip."""
    parts = hlo.computations(text)
    runs = hlo.times(parts, share)
    total = 0.0
    for name, lines in parts.items():
        here = [each for each in lines if each.opcode == "convolution"] if runs.get(name) else []
        shapes = {each.name: each.arrays[0] for each in lines if each.arrays} if here else {}
        total += sum(runs[name] * product_flops(each, shapes) for each in here)
    return total


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas attention kernel.

    part: of the network (aot.bill); heads, queries, keys, width: of one call on one chip; calls: a run; products: of a
    pair, two forward, three for dq and four for dk and dv; block: (queries, keys) that it computes at once
    """

    name: str
    part: str
    heads: int
    queries: int
    keys: int
    width: int
    block: tuple[int, int]
    products: int
    calls: float

    def pairs(self, causal: bool, segment: np.ndarray | None = None) -> float:
        """(query, key) that one head computes in a call: all of a block that any query may see.

        segment: ids of the row's tokens or patches, whose blocks of other segments are skipped; None: nothing is known
        of them.
        """
        q, k = self.block
        if segment is None:
            segment = np.ones(self.queries, np.int32)
        return float(q * k * splash_attention.visible_blocks(jnp.array(segment), q, k, causal).sum())

    def flops(self, pairs: float, unit: int) -> float:
        """MXU work, when each head computes so many pairs a call, with the heads filled up to the unit's width."""
        width = -(-self.width // unit) * unit
        return self.calls * self.products * 2.0 * self.heads * pairs * width


def kernels(text: str, share: hlo.Share = hlo.all_taken) -> list[Kernel]:
    """ValueError for a kernel that is not splash attention: its arithmetic would be missed."""
    parts, sources = hlo.computations(text), bill.Sources(text)
    runs = hlo.times(parts, share, fused=False)
    found = [(name, each) for name, lines in parts.items() if runs.get(name) for each in lines
             if each.opcode == "custom-call" and KERNEL in each.line]  # fmt: skip
    return [_kernel(each, bill.part_of(sources(each.line), ""), runs[name]) for name, each in found]


def _kernel(each: Instruction, part: str, calls: float) -> Kernel:
    if "splash" not in each.name:
        raise ValueError(f"kernel {each.name}: expected splash attention, whose products are known")
    operands = re.search(r"operand_layout_constraints=\{(.*?)\}, [a-z_]+=", each.line + ", end=")[1]
    q, k = [a.shape for a in hlo.arrays(operands) if a.dtype in ("bf16", "f32") and len(a.shape) > 2][:2]
    products, of = (4, "_dkv") if "_dkv" in each.name else (3, "_dq") if "_dq" in each.name else (2, "")
    # Metadata is JSON in a JSON string: \"block_q\": 512.
    size = lambda key: int(re.search(rf'\\"{key}\\": (\d+)', each.line)[1])  # noqa: E731
    block = size(f"block_q{of}"), size(f"block_kv{of}")
    return Kernel(each.name, part, math.prod(q[:-2]), q[-2], k[-2], q[-1], block, products, calls)
