"""The numbers that the paper prints, those that follow from its tables, and where it contradicts itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lvr_jax.prism.probes.logistic_probe import label_entropy
from lvr_jax.prism.statistics.across_variants import correlation, partial_correlation, pearson
from lvr_jax.prism.statistics.correlation_intervals import binomial_bootstrap

_FILE = Path(__file__).with_name("paper.json")
CORRUPTIONS = ("truncate", "noise_0.1", "noise_0.3", "noise_1.0", "swap")


@dataclass(frozen=True)
class Paper:
    """paper.json. columns: name to [V] values in the order of variants; raw: all of it, with sources and digits."""

    variants: tuple[str, ...]
    columns: dict[str, np.ndarray]
    raw: dict

    def value(self, column: str, variant: str) -> float:
        return float(self.columns[column][self.variants.index(variant)])


@dataclass(frozen=True)
class Derived:
    """A number that the paper prints and that its tables imply. agrees: equal at the printed number of digits."""

    name: str
    source: str
    printed: str
    computed: float

    @property
    def agrees(self) -> bool:
        return float(f"{self.computed:.{decimals(self.printed)}f}") == float(self.printed)


@dataclass(frozen=True)
class Contradiction:
    """A statement of the paper beside what its own tables say; item: its number in the project's notes (1.9)."""

    item: int
    source: str
    claim: str
    found: dict[str, float]
    holds: bool


def decimals(printed: str) -> int:
    """Digits after the point of a printed number."""
    return len(printed.partition(".")[2])


def load_paper() -> Paper:
    """Reads the published numbers from paper.json."""
    raw = json.loads(_FILE.read_text())
    columns = {name: np.array([float(v) for v in column["values"]]) for name, column in raw["columns"].items()}
    return Paper(tuple(raw["variants"]), columns, raw)


def derived_numbers(paper: Paper) -> list[Derived]:
    """Every printed number that the tables imply, recomputed from the printed tables alone."""
    raw, col = paper.raw, paper.columns
    rows = [
        Derived(f"r({r['x']}, {r['y']})", r["source"], r["r"], float(pearson(col[r["x"]], col[r["y"]])))
        for r in raw["correlations"]
    ]
    loo = raw["leave_one_out"]
    without = correlation(col[loo["x"]], col[loo["y"]]).leave_one_out
    rows += [
        Derived(f"leave-one-out {end} of r({loo['x']}, {loo['y']})", loo["source"], loo[end], float(value))
        for end, value in (("low", without.min()), ("high", without.max()))
    ]
    partial = raw["partial"]
    held = "r({x}, {y} | {given})".format(**partial)
    value = partial_correlation(col[partial["x"]], col[partial["y"]], col[partial["given"]])
    rows.append(Derived(held, partial["source"], partial["r"], value))
    boot, n = raw["bootstrap"], raw["benchmarks"]["vstar"]["n"]
    for row in boot["intervals"]:
        interval = binomial_bootstrap(col[row["x"]], col[row["y"]], n, boot["draws"], boot["seed"])
        rows += [
            Derived(f"bootstrap {end} of r({row['x']}, {row['y']})", boot["source"], row[end], getattr(interval, end))
            for end in ("low", "high")
        ]
    letters = raw["benchmarks"]["vstar"]["letters"]
    entropy = float(label_entropy(list(letters.values())))
    cells = raw["cells"]
    rows.append(Derived("H(Y)", cells["label_entropy"]["source"], cells["label_entropy"]["value"], entropy))
    uniform = cells["label_entropy_uniform"]
    rows.append(Derived("ln 4", uniform["source"], uniform["value"], float(np.log(len(letters)))))
    implied = {
        "gap": col["probe_a"] - col["probe_b"],
        "mi_lower_bound": np.maximum(0, entropy - col["cross_entropy_a"]),
    }
    for name, values in implied.items():
        column = raw["columns"][name]
        rows += [
            Derived(f"{name} of {variant}", column["source"], printed, float(value))
            for variant, printed, value in zip(paper.variants, column["values"], values)
        ]
    return rows


def contradictions(paper: Paper) -> list[Contradiction]:
    """Statements of the paper tested against its own tables."""
    raw, col, claims = paper.raw, paper.columns, paper.raw["claims"]
    single = [paper.variants.index(v) for v in raw["clusters"]["single_stage"]]
    inside = {x: float(pearson(col[x][single], col["vstar"][single])) for x in ("cosine", "gap", "probe_a")}
    response = {d: float(pearson(col["gap"], col[d])) for d in CORRUPTIONS}
    largest = float(max(np.abs(col[d]).max() for d in CORRUPTIONS))
    zeroed = {v: paper.value(claims["zeroing_flips_sign"]["x"], v) for v in claims["zeroing_flips_sign"]["variants"]}
    smallest = claims["probe_a_minimum"]
    letters = raw["benchmarks"]["vstar"]["letters"]
    majority = 100 * max(letters.values()) / sum(letters.values())
    whole = float(pearson(col["cosine"], col["vstar"]))
    # "Predicts" at least as well as in the weaker of the two conditions that Table 2 shows.
    shown = min(abs(float(r["r"])) for r in raw["correlations"] if r["x"] == "gap" and r["y"] in CORRUPTIONS)
    return [
        Contradiction(4, "Table 2, cosine", "cosine ranks the variants backwards", inside,
                      holds=inside["cosine"] * whole > 0),
        Contradiction(5, claims["gap_predicts_response"]["source"], "G predicts the response to corruption", response,
                      holds=min(abs(r) for r in response.values()) >= shown),
        Contradiction(7, claims["small_deltas"]["source"], f"no delta exceeds {claims['small_deltas']['value']} points",
                      {"largest": largest}, holds=largest <= float(claims["small_deltas"]["value"])),
        Contradiction(8, claims["zeroing_flips_sign"]["source"], "zeroing moves LVR and N-LVR in opposite directions",
                      zeroed, holds=min(zeroed.values()) < 0 < max(zeroed.values())),
        Contradiction(9, smallest["source"], f"the smallest (a) is {smallest['value']}, of {smallest['variant']}",
                      {v: paper.value("probe_a", v) for v in paper.variants},
                      holds=float(smallest["value"]) == min(col["probe_a"].tolist())),
        Contradiction(10, claims["chance"]["source"], f"chance is {claims['chance']['value']} %",
                      {"majority letter": majority} | {v: paper.value("probe_b", v) for v in paper.variants},
                      holds=majority <= float(claims["chance"]["value"]) + 0.5),
    ]  # fmt: skip
