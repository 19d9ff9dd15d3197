"""Records memory, traffic and cycles of compiled programs, and renders the records as a table and as bills."""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from aot import arithmetic, bill, collectives, hlo, roofline, traffic
from aot.programs import Program
from aot.slices import Slice, memory_error

GIB = 2**30
COLUMNS = (
    "config", "slice", "mesh", "program", "rows", "GiB of", "fits", "arguments", "temporaries", "output", "aliased",
    "most rows", "collectives, GB", "TFLOP", "plan s", "MXU s", "HBM s", "ICI s", "busiest", "MFU <=", "compiled in s",
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


def compiled(
    program: Program, mesh: jax.sharding.Mesh, effort: float = 0.0, options: Mapping[str, Any] | None = None
) -> Compiled:
    """effort: of the compiler, -1 to 1; 0 is its default. options: instead of the program's own."""
    wanted = {**({"exec_time_optimization_effort": effort} if effort else {}), **(options or {})}
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.args, **program.options)
        since = time.perf_counter()
        try:
            done = lowered.compile(wanted or None)
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


def costs(text: str, tower: float) -> list[bill.Cost]:
    """The compiler's cycles. tower: share of the tower's layers that attend to whole images."""
    return bill.costs(text, _branches(text, tower))


def _branches(text: str, tower: float) -> hlo.Share:
    """How often a branch is taken: of the tower's layers as they are, else as if always."""
    sources = bill.Sources(text)

    def share(conditional: hlo.Instruction, branch: int) -> float:
        in_tower = any(file == "vision.py" for file, _ in sources(conditional.line))
        return (1 - tower, tower)[branch] if in_tower else 1

    return share


def speed(program: Program, of: Compiled, where: Slice) -> dict[str, Any]:
    """The bill in cycles and the roofline in seconds, of one run on one chip; nothing for a chip that is not listed.

    Where the compiler has no estimate of some instructions, `unpriced` of them, there is no bill, plan or MFU.
    """
    kind = where.devices[0].device_kind
    if not of.text or kind not in roofline.CHIPS:
        return {}
    share = _branches(of.text, program.tower)
    unpriced = bill.unpriced(of.text)
    by_part = {} if unpriced else bill.by_part(costs(of.text, program.tower))
    kernels = [
        (k, k.pairs(causal=k.part.startswith("decoder"), segment=program.segments.get(k.part.partition(" ")[0])))
        for k in arithmetic.kernels(of.text, share)
    ]
    found = roofline.roofline(
        kind, roofline.sizes(where.name), program.devices, kernels=kernels, model_flops=program.flops,
        cycles=None if unpriced else sum(here[name] for here in by_part.values() for name in bill.PASSES),
        products=arithmetic.products(of.text, share), hbm_bytes=traffic.hbm_bytes(of.text, share),
        moved=collectives.collectives(of.text),
    )  # fmt: skip
    seconds = {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(found).items() if value is not None}
    shares = {name: round(value, 4) for name, value in (("mfu", found.mfu), ("roof", found.roof)) if value is not None}
    cycles = {"unpriced": unpriced} if unpriced else {"bill": by_part}
    return {**cycles, "seconds": seconds, **shares, "bound_by": found.bound_by}


def row(name: str, program: Program, of: Compiled, where: Slice, shown: dict[str, Any]) -> dict[str, Any]:
    """A JSON-able record; `shown`: what the caller knows of it."""
    return {
        **shown, "program": name, "topology": where.name, "slice": where.product, "memory": where.memory,
        "fits": of.fits, "total": of.total, "arguments": of.arguments, "temporaries": of.temporaries,
        "output": of.output, "aliased": of.aliased,
        "collectives": collectives.by_kind(collectives.collectives(of.text)),
        "model_flops": program.flops, "speed": speed(program, of, where), "compile_seconds": round(of.seconds, 1),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }  # fmt: skip


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def line(r: dict[str, Any]) -> dict[str, str]:
    """A record as a person reads it: GiB a chip, GB moved a chip and run, 1e12 model FLOPs a run, seconds of a run as
    planned and of each unit at its peak, and the bound that the plan sets on model FLOPs utilisation."""
    speed = r["speed"]
    seconds = speed.get("seconds", {})
    shown = lambda name: f"{seconds[name]:.3g}" if name in seconds else ""  # noqa: E731
    moved = ", ".join(f"{kind} {of['bytes'] / 1e9:.2f}" for kind, of in r["collectives"].items())
    return dict(zip(COLUMNS, (
        r["config"], f"{r['slice']} ({r['topology']})", r["mesh"], r["program"], str(r["rows"]),
        f"{r['total'] / GIB:.2f} of {r['memory'] / GIB:.2f}", "yes" if r["fits"] else "no", _gib(r["arguments"]),
        _gib(r["temporaries"]), _gib(r["output"]), _gib(r["aliased"]),
        "" if r["most_rows"] is None else str(r["most_rows"]), moved,
        "" if r["model_flops"] is None else f"{r['model_flops'] / 1e12:,.0f}",
        *map(shown, ("plan", "mxu", "hbm", "ici")),
        speed.get("bound_by", ""), f"{speed['mfu']:.0%}" if "mfu" in speed else "", f"{r['compile_seconds']:.0f}",
    )))  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown that is a table on a terminal too."""
    lines = [dict(zip(COLUMNS, COLUMNS)), *map(line, rows)]
    width = {name: max(len(each[name]) for each in lines) for name in COLUMNS}
    shown = ["| " + " | ".join(each[name].ljust(width[name]) for name in COLUMNS) + " |" for each in lines]
    return "\n".join([shown[0], "|" + "|".join("-" * (width[name] + 2) for name in COLUMNS) + "|", *shown[1:]])


def shown_bill(r: dict[str, Any]) -> str:
    """A record's bill: 1e9 cycles by part and pass, of them in matrix products, then the roofline in seconds."""
    speed = r["speed"]
    seconds = speed["seconds"]
    text = [f"{r['config']}, {r['program']}, {r['slice']} ({r['topology']})"]
    units = ", ".join(f"{name.upper()} {seconds[name]:.3g} s" for name in ("mxu", "hbm", "ici"))
    if "unpriced" in speed:
        text.append(f"no plan: the compiler has no estimate of {speed['unpriced']:,} instructions; {units}")
        return "\n".join(text)
    by_part = speed["bill"]
    names = (*bill.PASSES, "products")
    total = {n: sum(here[n] for here in by_part.values()) for n in names}
    shown = lambda cycles: f"{cycles / 1e9:.3g}" if cycles else ""  # noqa: E731
    lines = [("G cycles", *names, "all")]
    for part, here in (*by_part.items(), ("all but kernels", total)):
        lines.append((part, *(shown(here[n]) for n in names), shown(sum(here[n] for n in bill.PASSES))))
    width = max(len(each[0]) for each in lines)
    text += ["  ".join([each[0].ljust(width), *(cell.rjust(8) for cell in each[1:])]) for each in lines]
    plan = f"plan {seconds['plan']:.3g} s, of it kernels at the peak {seconds['kernels']:.3g} s and collectives that "
    plan += f"nothing hides {seconds['exposed']:.3g} s; "
    text.append(plan + units)
    if "mfu" in speed:
        text[-1] += f"; MFU at most {speed['mfu']:.1%} by the plan, {speed['roof']:.1%} by {speed['bound_by']}"
    return "\n".join(text)
