"""Reads the list of runs that a study's config names: settings, configs and axes, every combination by one name.

An entry of `runs.SETTING` is a file of configs/ and any axes, with commas between entries and bars between values:

    runs.plain = "sft, lvr, lvr lambda=0|0.01|1 seed=0|1, lvr base=tiny_one_offset steps=600"

An axis is one of AXES or any field of the experiment's config (`objective.noise=0.3`).
"""

import ast
import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lvr_jax.files.names import inside, packaged
from lvr_jax.files.shipped import CONFIGS


@dataclasses.dataclass(frozen=True)
class Setting:
    """fields: what it changes in an experiment's config; scenes: in the scenes that are scored; base: the checkpoint in
    lvr_jax/assets that its runs start from, if it is another than the study's; longer: times as many steps."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scenes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | None = None
    longer: int = 1


# A report compares settings side by side, and variants within the first: `controls` only stands apart.
SETTINGS = {
    "plain": Setting(),
    "controls": Setting(),
    # Trained longer from a base that cannot reply behind a block, a model comes to rely on its latents.
    "believed": Setting(base="tiny_one_offset", longer=2),
    "bottleneck": Setting({"objective.attention": "bottleneck"}),                       # configs/bottleneck.py
    "masked": Setting(                                                                  # configs/masked_input.py
        {"data.sources.digits.mask_box": True, "held_out.sources.digits.mask_box": True, "data.windows": 4},
        {"mask_box": True},
    ),
}
# Short names of what runs differ by: the field of the config, and the field's value for an axis's.
AXES = {
    "lambda": ("reconstruction.points", lambda value: ((0.0, float(value)),)),
    "target": ("objective.target", str),
    "route": ("objective.route", str),
    "noise": ("objective.noise", float),
    "steps": ("steps", int),
    "peak": ("optimizer.peak", float),
}
BASE, SEED = "base", "seed"     # axes too: a checkpoint in lvr_jax/assets, and the training's seed
# Runs without latents: there is nothing to audit, and their replies are ordinary text.
TEXT_ONLY = ("base", "sft", "sft_markers")


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained checkpoint. config: name of a file in configs/; axes: (name, value as written) in order of names;
    base: folder of the checkpoint that it starts from; workdir: of the study."""

    setting: str
    config: str
    axes: tuple[tuple[str, str], ...]
    seed: int
    base: Path
    workdir: Path

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" if self.seed else self.variant

    @property
    def variant(self) -> str:
        """What runs with other seeds share."""
        text = " ".join([self.config, *(f"{axis}={value}" for axis, value in self.axes)])
        return text if self.setting == "plain" else f"{self.setting}: {text}"

    @property
    def folder(self) -> Path:
        """Of all that belongs to the run."""
        slug = re.sub(r"[^a-z0-9_.]+", "-", self.variant.lower()).strip("-")
        return self.workdir / "runs" / (f"{slug}-{self.seed}" if self.seed else slug)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "train" / "export"

    @property
    def system(self) -> str:
        """The latent system that it is decoded as."""
        return importlib.import_module(f"configs.{self.config}").get_config("tiny").system.name

    @property
    def scenes(self) -> dict:
        return {"split": "test", **SETTINGS[self.setting].scenes}

    def fields(self) -> dict[str, Any]:
        """What the run changes in its config, by field; ValueError for a field that the config lacks."""
        config = importlib.import_module(f"configs.{self.config}").get_config("tiny")
        found = dict(SETTINGS[self.setting].fields)
        for axis, text in self.axes:
            if axis == BASE:
                continue
            field, value_of = AXES.get(axis, (axis, _literal))
            try:
                found[field] = value_of(text)
            except ValueError:
                raise ValueError(f"{self.variant}: {axis} is {text!r}, expected a number") from None
        if "reconstruction.points" in found and len(config.reconstruction.points) > 1:
            raise ValueError(f"{self.variant}: configs/{self.config}.py schedules lambda, expected no such axis")
        for field in found:
            _require(config, field, f"{self.variant}: configs/{self.config}.py")
        return found


def runs(config: ConfigDict, workdir: Path) -> list[Run]:
    """All runs of a study; ValueError for one that cannot be, or that is asked for twice."""
    if unknown := set(config.runs) - set(SETTINGS):
        raise ValueError(f"runs.{sorted(unknown)[0]}: no such setting, expected {', '.join(SETTINGS)}")
    found: dict[Path, Run] = {}
    for setting in SETTINGS:
        for entry in filter(None, (part.strip() for part in config.runs.get(setting, "").split(","))):
            for run in _combinations(entry, setting, config, workdir):
                if run.folder in found:
                    raise ValueError(
                        f"{run.variant!r} with seed {run.seed} is asked for twice, see seeds and runs.{setting}"
                    )
                found[run.folder] = run
    if not found:
        raise ValueError("seeds and runs name nothing to train, expected at least one seed and one run")
    return sorted(found.values(), key=lambda run: run.seed)


def _combinations(entry: str, setting: str, config: ConfigDict, workdir: Path) -> Iterator[Run]:
    name, *words = entry.split()
    if not (CONFIGS / f"{name}.py").exists():
        raise ValueError(f"runs.{setting} names {name!r}: there is no configs/{name}.py")
    axes: dict[str, list[str]] = {}
    for word in words:
        axis, equals, values = word.partition("=")
        if not equals or axis in axes or not all(values.split("|")):
            raise ValueError(f"runs.{setting}: {entry!r} has {word!r}, expected AXIS=VALUE[|VALUE..] once")
        axes[axis] = values.split("|")
    seeds = axes.pop(SEED, [str(seed) for seed in config.seeds])
    if wrong := [seed for seed in seeds if not seed.isdigit()]:
        raise ValueError(f"runs.{setting}: {entry!r} has seed {wrong[0]!r}, expected a whole number")
    for seed in seeds:
        for values in itertools.product(*axes.values()):
            own = tuple(sorted(zip(axes, values)))
            base = Path(packaged(config.checkpoint)).absolute()
            if other := dict(own).get(BASE, SETTINGS[setting].base):
                try:
                    base = inside(base.parent, other)
                except ValueError as error:
                    raise ValueError(f"runs.{setting}: {entry!r}: base {error}") from error
            if not base.is_dir():
                raise ValueError(f"runs.{setting}: {entry!r} has base {base.name!r}: there is no {base}")
            yield Run(setting, name, own, int(seed), base, workdir)


def _require(config: Mapping, field: str, where: str) -> None:
    node = config
    for part in field.split("."):
        if not isinstance(node, Mapping | ConfigDict) or part not in node:
            raise ValueError(f"{where} has no field {field!r}, expected a field, base, seed, {', '.join(AXES)}")
        node = node[part]


def _literal(text: str) -> Any:
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
