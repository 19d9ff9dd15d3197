"""The page of what was compiled: a table of programs and slices, and the bill of each. Written by --show."""

from collections.abc import Sequence
from typing import Any

from aot.report import GIB, shown_bill

SHORT = {"all-gather": "gather", "all-reduce": "reduce", "reduce-scatter": "scatter", "collective-permute": "permute"}
HEAD = """# What fits on TPUs, and how fast it can be at best

Compiled by libtpu for slices that are not here, with the options and at the effort that a run has; nothing is measured.
This page is `python tools/compile_check.py --show tools/aot/compiled.json`; each record there has its command.

GiB: what a chip needs at its fullest moment, of what it has. Moved: GB between chips a run, every turn of a loop
counted. PFLOP: model FLOPs of a run (lvr_jax.training.flops). Plan: seconds of a run by the compiler's own cycles, with
attention kernels at the peak of the matrix unit and collectives that nothing hides at the peak of the links added (of
it, these two). MXU, HBM, ICI: seconds that each unit is busy at its published peak. MFU: at most, by the plan; real
attention kernels reach 36 to 60 % of the peak. Rows: "64 in 4 of 16,384" are packs of so many tokens in four
micro-batches; an item of the others is a prompt of so many tokens. Of copies and gathers that tpu7x leaves to its
sparse cores the compiler has no estimate, so there is no plan.
"""
COLUMNS = ("program", "slice", "mesh", "rows", "fits", "GiB", "moved", "PFLOP", "plan", "kernels", "exposed", "MXU",
           "HBM", "ICI", "busiest", "MFU")  # fmt: skip


def page(records: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown."""
    lines = [HEAD, _row(COLUMNS), _row("---" for _ in COLUMNS), *(_row(_cells(r)) for r in records)]
    bills = [shown_bill(r) for r in records if r.get("speed")]
    return "\n".join([*lines, "\n## Bills\n", "```", "\n\n".join(bills), "```"])


def _row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _rows(r: dict[str, Any]) -> str:
    parts = f" in {r['accumulate']}" if (r["accumulate"] or 1) > 1 else ""
    return f"{r['rows']}{parts} of {r['tokens']:,}"


def _cells(r: dict[str, Any]) -> list[str]:
    speed = r.get("speed", {})
    seconds = speed.get("seconds", {})
    moved = ", ".join(f"{of['bytes'] / 1e9:.0f} {SHORT.get(kind, kind)}" for kind, of in r["collectives"].items()
                      if of["bytes"] >= 5e8)  # fmt: skip
    name = "" if r["program"] == "train" else ", " + r["program"]
    name += f" of {r['conditions']} conditions" if r["conditions"] else ""
    return [
        r["config"] + name, f"{r['slice']} `{r['topology']}`", r["mesh"], _rows(r), "yes" if r["fits"] else "**no**",
        f"{r['total'] / GIB:.1f} of {r['memory'] / GIB:.1f}", moved,
        f"{r['model_flops'] / 1e15:.1f}" if r["model_flops"] else "",
        *(f"{seconds[n]:.3g}" if n in seconds else "" for n in ("plan", "kernels", "exposed", "mxu", "hbm", "ici")),
        speed.get("bound_by", ""), f"{speed['mfu']:.0%}" if "mfu" in speed else "",
    ]  # fmt: skip
