"""Evaluation protocols: every switch that a number depends on, stored with each result.

`paper` is what "Cosine Misleads" and LVR ran, quirks included; `clean` is what we recommend. A switch can be set on
its own: `protocol("paper", mmvp_order="lexicographic")`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lvr_jax.data.images import PROTOCOLS as IMAGE_PROTOCOLS
from lvr_jax.evaluation import extraction, prompts, scoring
from lvr_jax.evaluation.benchmarks import mmvp
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.files.json_io import JsonError, check_kinds
from lvr_jax.files.json_io import kind as json_kind
from lvr_jax.latents.spec import MOST_LATENTS

# No reply of a published system is nearly as long: more is a slip, and would run for ever.
MOST_TOKENS = 128_000


@dataclasses.dataclass(frozen=True)
class Budget:
    """Latent steps by kind of run."""

    accuracy: int
    corruption: int
    probe: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that a number depends on besides checkpoint and benchmark.

    prompts, extraction, aggregation: names of harnesses. `extraction` reads the replies of accuracy runs,
    `corruption_extraction` those of corruption and probe runs: the paper's two scripts differ, so that its clean
    accuracy under corruption is not its accuracy.
    image_protocol: a name of `data.images.PROTOCOLS`; "evaluate" resizes twice (first by the defaults of
    qwen-vl-utils, then by the checkpoint's limits), "train" once, as in training.
    repetition_penalty: divides or multiplies the logits of ids seen before, in prompt and output alike;
    `penalise_slot_ids` counts the ids that were recorded at latent steps but never fed back among them.
    steps, staged_steps: latents a block for systems with one stage and with several (P-LVR); a context stage gets
    `context_factor` times as many.
    mmvp_order, mmvp_key: how images meet questions and which answer key counts (`benchmarks/mmvp.py`).
    """

    name: str
    prompts: str
    extraction: str
    corruption_extraction: str
    aggregation: str
    image_protocol: str
    repetition_penalty: float
    penalise_slot_ids: bool
    max_new_tokens: int
    steps: Budget
    staged_steps: Budget
    context_factor: int
    mmvp_order: str
    mmvp_key: str

    def __post_init__(self):
        known = {"prompts": prompts.HARNESSES, "extraction": extraction.BY_HARNESS,
                 "corruption_extraction": extraction.BY_HARNESS, "aggregation": scoring.REPORTED,
                 "image_protocol": IMAGE_PROTOCOLS, "mmvp_order": mmvp.ORDERS, "mmvp_key": mmvp.KEYS}
        for field, names in known.items():
            if not isinstance(getattr(self, field), str) or getattr(self, field) not in names:
                raise BenchmarkError(f"protocol {self.name}: {field} is {getattr(self, field)!r},"
                                     f" expected one of {', '.join(names)}")
        penalty = self.repetition_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 < penalty < math.inf:
            raise BenchmarkError(f"protocol {self.name}: repetition_penalty is {self.repetition_penalty!r},"
                                 " expected a number above 0 (1.0 switches it off)")
        whole = {
            "max_new_tokens": (self.max_new_tokens, MOST_TOKENS), "context_factor": (self.context_factor, MOST_LATENTS),
        }  # fmt: skip
        for field in ("steps", "staged_steps"):
            if not isinstance(getattr(self, field), Budget):
                raise BenchmarkError(f"protocol {self.name}: {field} is {getattr(self, field)!r}, expected a budget")
            runs = dataclasses.asdict(getattr(self, field))
            whole |= {f"{field}.{run}": (value, MOST_LATENTS) for run, value in runs.items()}
        for field, (value, most) in whole.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise BenchmarkError(f"protocol {self.name}: {field} is {value!r},"
                                     f" expected a whole number above 0 and up to {most}")

    def loader_options(self, family: str) -> dict[str, str]:
        """What `benchmarks.load` must be told of this protocol for a benchmark of this family."""
        return {"mmvp": {"order": self.mmvp_order, "key": self.mmvp_key}}.get(family, {})

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping) -> Protocol:
        """The inverse of `to_json`; refuses missing and unknown fields by name."""
        if not isinstance(record, Mapping):
            raise BenchmarkError(f"protocol: is {json_kind(record)}, expected an object")
        names = [field.name for field in dataclasses.fields(cls)]
        for kind, odd in (("unknown", set(record) - set(names)), ("missing", set(names) - set(record))):
            if odd:
                raise BenchmarkError(f"protocol {record.get('name')!r}: {kind} field {', '.join(sorted(odd))}")
        try:
            check_kinds(record, cls, f"protocol {record['name']!r}")
            budgets = {field: Budget(**record[field]) for field in ("steps", "staged_steps")}
        except JsonError as error:
            raise BenchmarkError(str(error)) from None
        except TypeError as error:
            raise BenchmarkError(f"protocol {record['name']!r}: budget {error}") from None
        return cls(**{**record, **budgets})


# The paper's tables use 8 steps; its corruption runs gave P-LVR 16 (24 and 48 latents in all with the doubled context).
PAPER = Protocol(
    name="paper", prompts="prism", extraction="lvr", corruption_extraction="prism", aggregation="prism",
    image_protocol="evaluate", repetition_penalty=1.05, penalise_slot_ids=True, max_new_tokens=512,
    steps=Budget(8, 8, 8), staged_steps=Budget(8, 16, 8), context_factor=2, mmvp_order="index", mmvp_key="original")

CLEAN = dataclasses.replace(
    PAPER, name="clean", prompts="clean", extraction="clean", corruption_extraction="clean", aggregation="clean",
    image_protocol="train", repetition_penalty=1.0, penalise_slot_ids=False, staged_steps=Budget(8, 8, 8),
    mmvp_key="corrected")

PROTOCOLS = {each.name: each for each in (PAPER, CLEAN)}


def protocol(name: str, **switches) -> Protocol:
    """A named protocol with some switches set; its name then says which ("paper, mmvp_order=lexicographic")."""
    if name not in PROTOCOLS:
        raise BenchmarkError(f"no protocol {name!r}, expected one of {', '.join(PROTOCOLS)}")
    base = PROTOCOLS[name]
    names = [field.name for field in dataclasses.fields(Protocol) if field.name != "name"]
    for switch in switches:
        if switch not in names:
            raise BenchmarkError(f"protocol {name}: no switch {switch!r}, expected some of {', '.join(names)}")
    changed = {key: value for key, value in switches.items() if getattr(base, key) != value}
    label = ", ".join([name, *(f"{key}={value}" for key, value in sorted(changed.items()))])
    return dataclasses.replace(base, **changed, name=label)


def differences(one: Protocol, other: Protocol) -> dict[str, tuple]:
    """Switches in which two protocols differ, names aside."""
    a, b = one.to_json(), other.to_json()
    return {key: (a[key], b[key]) for key in a if key != "name" and a[key] != b[key]}
