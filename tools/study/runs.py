"""Reads the list of runs that a study's config names: settings, configs and axes, every combination by one name.

An entry of `runs.SETTING` is a file of configs/ and any axes, with commas between entries and bars between values:

    runs.plain = "sft, lvr, lvr lambda=0|0.01|1 seed=0|1, lvr base=tiny_one_offset steps=600"

An axis is one of AXES or any field of the experiment's config (`objective.noise=0.3`).

A study may have `blocks` instead, named groups of such lists with the setting before each: a run that several blocks
ask for, in whatever words, is one run of all of them.

    blocks.variants = "plain: lvr, n_lvr noise=0.3|1; bottleneck: lvr lambda=0|0.1"
"""

import ast
import dataclasses
import functools
import importlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lvr_jax.files.names import inside, packaged
from lvr_jax.files.shipped import CONFIGS


@dataclasses.dataclass(frozen=True)
class Setting:
    """fields: what it changes in an experiment's config; scenes: in the scenes that are scored; base: the checkpoint in
    lvr_jax/assets that its runs start from, if it is another than the study's; longer: times as many steps; source: of
    `data.sources`, what its configs are trained on."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scenes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | None = None
    longer: int = 1
    source: str = "digits"

    @property
    def benchmark(self) -> str:
        """What is scored and audited."""
        return BENCHMARKS[self.source]


# Source of the tiny configs -> the same scenes as a benchmark.
BENCHMARKS = {"digits": "digit_search", "rotation": "rotation"}

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
    # Rotation analogies, the solution never in view; in the second shape 3 is not in view either, so that a latent
    # alone can tell.
    "rotation": Setting(base="tiny_rotation", source="rotation"),                       # configs/rotation_lvr.py
    "rotation_query": Setting(
        {f"{where}.sources.rotation.mask_query": True for where in ("data", "held_out")}, {"mask_query": True},
        base="tiny_rotation", source="rotation",
    ),
}
# Short names of what runs differ by: the fields of the config that a value sets.
AXES = {
    "lambda": lambda value: {"reconstruction.points": ((0.0, float(value)),)},
    "target": lambda value: {"objective.target": value},
    "route": lambda value: {"objective.route": value},
    "noise": lambda value: {"objective.noise": float(value)},
    "steps": lambda value: {"steps": int(value)},
    "peak": lambda value: {"optimizer.peak": float(value)},
    "head": lambda value: {"latent_head": value},
    # Share of the asked digit that is black, in the setting `masked`.
    "dark": lambda value: {f"{where}.sources.digits.mask_share": float(value) for where in ("data", "held_out")},
    # D-LVR's end of the reconstruction loss, as a share of the run.
    "until": lambda value: {"reconstruction.points": ((0.0, 0.1), (float(value), 0.0)), "init.fork_at": float(value)},
}

# Axes too: a checkpoint in lvr_jax/assets, the training's seed, and the step whose state is looked at, if it is not the
# last one.
BASE, SEED, AT = "base", "seed", "at"
# Tokens of a tiny run's sequence that do not depend on the question: the system turn and a picture of 16.
SHARED = 32
# Runs without latents: there is nothing to audit, and their replies are ordinary text.
TEXT_ONLY = ("base", "sft", "sft_markers")


def everywhere(study: ConfigDict, setting: str) -> dict[str, Any]:
    """The fields of an experiment's config that a study sets in all runs of a setting, unless an axis says other."""
    found = {"steps": study.train.steps * SETTINGS[setting].longer, "rows": study.train.rows}
    return {**found, **shared_optimizer(study)}


def shared_optimizer(study: ConfigDict) -> dict[str, Any]:
    """The part of it that is the study's own, whatever its runs' configs say."""
    return {f"optimizer.{name}": value for name, value in study.train.optimizer.items()}


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained checkpoint. config: name of a file in configs/; axes: (name, value as written) in order of names;
    base: folder of the checkpoint that it starts from; workdir: of the study; blocks: that ask for it."""

    setting: str
    config: str
    axes: tuple[tuple[str, str], ...]
    seed: int
    base: Path
    workdir: Path
    blocks: tuple[str, ...] = ()

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
        slug = re.sub(r"[^a-z0-9_.]+", "-", self.variant.lower().replace("=-", "=minus-")).strip("-")
        return self.workdir / "runs" / (f"{slug}-{self.seed}" if self.seed else slug)

    @property
    def at(self) -> int | None:
        """The step whose state is looked at; None: the last one."""
        said = dict(self.axes).get(AT)
        if said is not None and not said.isdecimal():
            raise ValueError(f"{self.variant}: at is {said!r}, expected a step")
        return None if said is None else int(said)

    @property
    def whole(self) -> "Run":
        """The run that this one is a state of; itself, if it is the last one."""
        return dataclasses.replace(self, axes=tuple(axis for axis in self.axes if axis[0] != AT))

    @property
    def trained_in(self) -> Path:
        return self.whole.folder / "train"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "train" / "export"

    @property
    def benchmark(self) -> str:
        """The scenes that it is scored and audited on."""
        return SETTINGS[self.setting].benchmark

    @property
    def scored_in(self) -> Path:
        """The file of its evaluation."""
        return self.folder / f"{self.benchmark}.jsonl"

    @property
    def system(self) -> str:
        """The latent system that it is decoded as."""
        return tiny_of(self.config).system.name

    @property
    def scenes(self) -> dict:
        scenes, axes = {"split": "test", **SETTINGS[self.setting].scenes}, dict(self.axes)
        return {**scenes, "mask_share": float(axes["dark"])} if "dark" in axes else scenes

    def pictures(self, study: ConfigDict) -> dict[str, Any]:
        """The fields by which a step's questions, two a row, are about fewer pictures: `train.questions` about each.

        None where a picture is one question's own (what it asks for is black) or a row is (own latents).
        """
        config, questions, asked = tiny_of(self.config), study.train.questions, 2 * study.train.rows
        if questions < 1 or asked % questions:
            raise ValueError(
                f"train.questions is {questions}, expected a number that divides the {asked} of a step, twice "
                "train.rows"
            )
        own = self.scenes.get("mask_box") or config.alignment.latents or "digits" not in config.data.sources
        if questions == 1 or own:
            return {}
        each = config.data.tokens // 2 - SHARED
        return {
            "rows": asked // questions, "data.sources.digits.questions": questions,
            "branches.shared": SHARED, "branches.each": each, "branches.count": questions,
            "data.tokens": SHARED + questions * each, "data.windows": 1, "data.max_per_row": 1,
            "data.pooled": config.data.pooled * questions // 2,
        }  # fmt: skip

    def fields(self) -> dict[str, Any]:
        """What the run changes in its config, by field; ValueError for a field that the config lacks."""
        config = tiny_of(self.config)
        found = dict(SETTINGS[self.setting].fields)
        for axis, text in self.axes:
            if axis not in (BASE, AT):
                found.update(self._fields_of(axis, text))
        if "lambda" in dict(self.axes) and len(config.reconstruction.points) > 1:
            raise ValueError(f"{self.variant}: configs/{self.config}.py schedules lambda, expected no such axis")
        if "dark" in dict(self.axes) and not SETTINGS[self.setting].scenes.get("mask_box"):
            raise ValueError(f"{self.variant}: dark is an axis of the setting masked, expected masked: {self.config}")
        for field in (f"data.sources.{SETTINGS[self.setting].source}", *found):
            _require(config, field, f"{self.variant}: configs/{self.config}.py")
        return found

    def _fields_of(self, axis: str, text: str) -> dict[str, Any]:
        try:
            return AXES[axis](text) if axis in AXES else {axis: _literal(text)}
        except ValueError:
            raise ValueError(f"{self.variant}: {axis} is {text!r}, expected a number") from None

    def plainest(self, study: ConfigDict) -> "Run":
        """The same run without axes that say what holds anyway in this study."""
        config = tiny_of(self.config)
        usual = {**config.to_dict(), **everywhere(study, self.setting), **SETTINGS[self.setting].fields}
        holds = lambda name: usual[name] if name in usual else _require(config, name, self.variant)  # noqa: E731
        kept = [
            (axis, text) for axis, text in self.axes
            if axis in (BASE, AT) or any(holds(name) != value for name, value in self._fields_of(axis, text).items())
        ]  # fmt: skip
        return dataclasses.replace(self, axes=tuple(kept))


def runs(config: ConfigDict, workdir: Path) -> list[Run]:
    """All runs of a study; ValueError for one that cannot be, or that is asked for twice. Of a study in blocks in the
    order of blocks, so that they are whole one after another."""
    if "blocks" in config:
        return _of_blocks(config, workdir)
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


def _of_blocks(config: ConfigDict, workdir: Path) -> list[Run]:
    found: dict[Path, Run] = {}
    if set(config.order) != set(config.blocks):
        wrong = sorted(set(config.order) ^ set(config.blocks))[0]
        raise ValueError(f"order and blocks do not name the same blocks: {wrong!r} is in one of them")
    if twice := [block for n, block in enumerate(config.order) if block in config.order[:n]]:
        raise ValueError(f"order names block {twice[0]!r} twice")
    for block in config.order:
        asked: dict[Path, Run] = {}
        for part in filter(None, (part.strip() for part in config.blocks[block].split(";"))):
            setting, colon, entries = part.partition(":")
            if not colon or setting not in SETTINGS:
                raise ValueError(f"blocks.{block} has {part!r}, expected SETTING: RUNS, a setting of "
                                 f"{', '.join(SETTINGS)}")  # fmt: skip
            for entry in filter(None, (entry.strip() for entry in entries.split(","))):
                for run in _combinations(entry, setting, config, workdir, f"blocks.{block}"):
                    run = run.plainest(config)
                    if run.folder in asked:
                        raise ValueError(f"blocks.{block} asks for {run.name!r} twice")
                    asked[run.folder] = run
        # A state comes after the run that it is a state of, in whatever order they are named.
        for folder, run in sorted(asked.items(), key=lambda item: (item[1].seed, item[1].at is not None)):
            before = found.get(folder, run)
            found[folder] = dataclasses.replace(before, blocks=(*before.blocks, block))
    if not found:
        raise ValueError("blocks name nothing to train, expected at least one run")
    return list(found.values())


def _combinations(
    entry: str, setting: str, config: ConfigDict, workdir: Path, where: str = ""
) -> Iterator[Run]:
    where = where or f"runs.{setting}"
    name, *words = entry.split()
    if not (CONFIGS / f"{name}.py").exists():
        raise ValueError(f"{where} names {name!r}: there is no configs/{name}.py")
    if not name.isidentifier() or "init" not in _config_of(name):
        raise ValueError(f"{where} names {name!r}: configs/{name}.py trains nothing, expected an experiment")
    axes: dict[str, list[str]] = {}
    for word in words:
        axis, equals, values = word.partition("=")
        if not equals or axis in axes or not all(values.split("|")):
            raise ValueError(f"{where}: {entry!r} has {word!r}, expected AXIS=VALUE[|VALUE..] once")
        axes[axis] = values.split("|")
    seeds = axes.pop(SEED, [str(seed) for seed in config.seeds])
    if wrong := [seed for seed in seeds if not seed.isdecimal()]:
        raise ValueError(f"{where}: {entry!r} has seed {wrong[0]!r}, expected a whole number")
    for seed in seeds:
        for values in itertools.product(*axes.values()):
            own = tuple(sorted(zip(axes, values)))
            base = Path(packaged(config.checkpoint)).absolute()
            if other := dict(own).get(BASE, SETTINGS[setting].base):
                try:
                    base = inside(base.parent, other)
                except ValueError as error:
                    raise ValueError(f"{where}: {entry!r}: base {error}") from error
            if not base.is_dir():
                raise ValueError(f"{where}: {entry!r} has base {base.name!r}: there is no {base}")
            yield Run(setting, name, own, int(seed), base, workdir)


def tiny_of(name: str) -> ConfigDict:
    """The tiny config of an experiment, made once: to be read, not changed."""
    return _made(importlib.import_module(f"configs.{name}").get_config)


@functools.cache
def _made(get_config: Callable[[str], ConfigDict]) -> ConfigDict:
    return get_config("tiny")


def _config_of(name: str) -> Mapping:
    """The tiny config of an experiment; empty for a config of another kind."""
    try:
        return tiny_of(name)
    except (AttributeError, TypeError, ValueError):     # no config, one without sizes, one of a program
        return {}


def _require(config: Mapping, field: str, where: str) -> Any:
    """The field's value."""
    node = config
    for part in field.split("."):
        if not isinstance(node, Mapping | ConfigDict) or part not in node:
            raise ValueError(f"{where} has no field {field!r}, expected a field, base, seed, {', '.join(AXES)}")
        node = node[part]
    return node


def _literal(text: str) -> Any:
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
