"""The page's section on shared parameters: latents and weights moved between checkpoints (tools/transplant.py)."""

from collections.abc import Mapping, Sequence

from lvr_jax.prism.statistics.intervals import Interval, tango, wilson
from study.page.findings import BLIND
from study.page.words import NOTHING, limits, listed, signed, table


def shown_pair(shared: Mapping | None) -> tuple[str, str] | None:
    """The host and donor of the figure: into the last checkpoint, of the one before it."""
    if shared is None or len(shared["checkpoints"]) < 2:
        return None
    return shared["checkpoints"][-2], shared["checkpoints"][-1]


def section(shared: Mapping | None, picture: str) -> str:
    """The section as Markdown, empty where nothing was run; picture: the figure's file."""
    if shared is None:
        return ""
    names, host_donor = shared["checkpoints"], shown_pair(shared)
    parts = ["## Block 9: shared parameters, directly", "",
             f"Each of {listed(names)} is fed the latents that each of them made for the same {shared['items']} "
             "questions; then each takes over one kind of another's weights, or one of its blocks. Intervals are over "
             "questions here (Wilson, Tango), for there is one checkpoint of each."
             + (" `sft_markers` was trained with a block's markers alone, and feeds latents that it never learnt to "
                "make." if "sft_markers" in names else ""), "",
             "Accuracy of the reader (row) with the latents of the maker (column), and the change by it:", "",
             table(("reader", *names), [(f"`{reader}`", *(_fed(shared["latents"][reader][maker]) for maker in names))
                                        for reader in names])]  # fmt: skip
    if host_donor:
        parts += ["", f"![One part of {host_donor[1]} in {host_donor[0]}]({picture})"]
    parts += ["", _transplant_table(shared["transplants"]), "", _equal(shared["transplants"])]
    if shared["spectra"]:
        parts += ["", _spectra(shared["spectra"])]
    parts += ["", "Made by `tools/transplant.py` with `configs/transplant.py:study` of three checkpoints with seed 0, "
              "trained with this study's optimizer; its `shared.json` lies beside this page."]
    return "\n".join(parts).rstrip()


def _fed(counts: Mapping[str, int]) -> str:
    n = counts["items"]
    if not n:
        return NOTHING
    change = tango(counts["gained"], counts["lost"], n)
    moved = Interval(*(100 * float(each) for each in (change.point, change.low, change.high)))
    return f"{100 * counts['right'] / n:.1f} ({limits(moved, 1)})"


def _transplant_table(records: Sequence[Mapping]) -> str:
    rows = []
    for t in records:
        if t["equal"]:
            continue
        n, right = t["clean"]["items"], t["clean"]["right"]
        clean = wilson(right, n)
        shown = Interval(*(100 * float(each) for each in (clean.point, clean.low, clean.high)))
        like = t["latents_like"]
        rows.append((
            f"`{t['host']}`", NOTHING if t["donor"] is None else f"{t['part']} of `{t['donor']}`",
            limits(shown, 1, False), *(_moved(t["conditions"].get(name)) for name in (BLIND, "donor_directed")),
            NOTHING if t["cosine"] is None else f"{t['cosine']:.3f}".replace("-", "−"),
            *(NOTHING if name is None or like.get(name) is None else f"{like[name]:.2f}".replace("-", "−")
              for name in (t["host"], t["donor"])),
        ))  # fmt: skip
    head = ("host", "takes over", "accuracy", "blind to latents", "another item's latents", "cosine with targets",
            "latents like the host's", "like the donor's")  # fmt: skip
    return table(head, rows, 2)


def _moved(counts: Mapping[str, int] | None) -> str:
    if counts is None or not counts["items"]:
        return NOTHING
    return signed(100 * (counts["right"] - counts["own"]) / counts["items"])


def _equal(records: Sequence[Mapping]) -> str:
    equal = list(dict.fromkeys(t["part"] for t in records if t["equal"]))
    return f"Parts that two of them hold equal values in, and that were not moved: {', '.join(equal)}." if equal else ""


def _spectra(spectra: Mapping[str, Mapping]) -> str:
    kinds = list(dict.fromkeys(kind for each in spectra.values() for kind in each["kinds"]))
    rows = []
    for name, each in spectra.items():
        for kind in kinds:
            k = each["kinds"].get(kind)
            if k and k["relative"]:
                rows.append((f"`{name}`", kind, str(k["matrices"]), f"{100 * k['relative']:.1f}",
                             *(NOTHING if k[key] is None else form % (scale * k[key])
                               for key, form, scale in (("rank", "%.0f", 1), ("top", "%.0f", 100)))))  # fmt: skip
    return "\n".join([
        "How far training moved the weights from the base: Frobenius norm of the difference over that of the base, of "
        "all matrices of a kind together; effective rank (exp of the entropy of singular values) and the first "
        "direction's share of the squared norm, means over matrices.", "",
        table(("checkpoint", "kind", "matrices", "moved, %", "effective rank", "first direction, %"), rows, 2),
    ])  # fmt: skip
