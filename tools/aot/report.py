"""What does a compiled program take, and does it fit? One record a program, and a table of them."""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from aot import hlo
from aot.programs import Program
from aot.slices import Slice, memory_error

GIB = 2**30
COLUMNS = (
    "config", "slice", "mesh", "program", "rows", "GiB of", "fits", "arguments", "temporaries", "output", "aliased",
    "most rows", "collectives, GB", "TFLOP", "seconds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one chip needs, in bytes. Of a program that does not fit, the compiler says `total` alone.

    total: at the fullest moment; less than the parts together, which need not be full at the same time
    """

    fits: bool
    total: int
    seconds: float
    arguments: int | None = None
    temporaries: int | None = None
    output: int | None = None
    aliased: int | None = None
    text: str = dataclasses.field(default="", repr=False)
    shardings: Any = dataclasses.field(default=None, repr=False)


def compiled(program: Program, mesh: jax.sharding.Mesh, effort: float = 0.0) -> Compiled:
    """effort: of the compiler, -1 to 1; 0 is its default."""
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.args, **program.options)
        since = time.perf_counter()
        try:
            done = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
        except jax.errors.JaxRuntimeError as error:
            return Compiled(False, memory_error(str(error))[0], time.perf_counter() - since)
    seconds, m = time.perf_counter() - since, done.memory_analysis()
    return Compiled(
        True, m.peak_memory_in_bytes, seconds, m.argument_size_in_bytes, m.temp_size_in_bytes,
        m.output_size_in_bytes, m.alias_size_in_bytes, done.as_text(), done.output_shardings,
    )


def most(measure: Callable[[int], Compiled], memory: int, first: int = 1) -> int:
    """The largest k >= 1 whose program fits, 0 if none does. What a program takes is nearly linear in k: two points
    predict the third, and the answer is always one that was compiled, beside a k + 1 that did not fit."""
    known: dict[int, Compiled] = {}
    low, high, k = 0, None, first
    while high is None or high - low > 1:
        known[k] = measure(k)
        low, high = (max(low, k), high) if known[k].fits else (low, k)
        if high is not None and high - low == 1:
            break
        (a, x), (b, y) = (sorted(known.items()) if len(known) > 1 else [(0, None), (k, known[k])])[-2:]
        slope = (y.total - (x.total if x else 0)) / (b - a)
        guess = int(b + (memory - y.total) / slope) if slope > 0 else 2 * k
        k = min(max(guess, low + 1), high - 1 if high is not None else 4 * max(low, 1))
    return low


def row(name: str, program: Program, of: Compiled, where: Slice, shown: dict[str, Any]) -> dict[str, Any]:
    """A JSON-able record; `shown`: what the caller knows of it."""
    return {
        **shown, "program": name, "topology": where.name, "slice": where.product, "memory": where.memory,
        "fits": of.fits, "total": of.total, "arguments": of.arguments, "temporaries": of.temporaries,
        "output": of.output, "aliased": of.aliased, "collectives": hlo.by_kind(hlo.collectives(of.text)),
        "model_flops": program.flops, "compile_seconds": round(of.seconds, 1),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }  # fmt: skip


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def line(r: dict[str, Any]) -> dict[str, str]:
    """A record as a person reads it: GiB a chip, GB moved a chip and run, 1e12 model FLOPs a run."""
    moved = ", ".join(f"{kind} {of['bytes'] / 1e9:.2f}" for kind, of in r["collectives"].items())
    return dict(zip(COLUMNS, (
        r["config"], f"{r['slice']} ({r['topology']})", r["mesh"], r["program"], str(r["rows"]),
        f"{r['total'] / GIB:.2f} of {r['memory'] / GIB:.2f}", "yes" if r["fits"] else "no", _gib(r["arguments"]),
        _gib(r["temporaries"]), _gib(r["output"]), _gib(r["aliased"]),
        "" if r["most_rows"] is None else str(r["most_rows"]), moved,
        "" if r["model_flops"] is None else f"{r['model_flops'] / 1e12:,.0f}", f"{r['compile_seconds']:.0f}",
    )))  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown that is a table on a terminal too."""
    lines = [dict(zip(COLUMNS, COLUMNS)), *map(line, rows)]
    width = {name: max(len(each[name]) for each in lines) for name in COLUMNS}
    shown = ["| " + " | ".join(each[name].ljust(width[name]) for name in COLUMNS) + " |" for each in lines]
    return "\n".join([shown[0], "|" + "|".join("-" * (width[name] + 2) for name in COLUMNS) + "|", *shown[1:]])
