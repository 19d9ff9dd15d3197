"""Turns a config into audits of all its checkpoints and one report.

    page = run(config, "runs/prism")

WORKDIR/NAME holds the stages of one checkpoint, WORKDIR/report what is written of all. Run again, it goes on where it
stopped; another config in the same folder is refused by the stage that it contradicts. On a pod every host runs it, in
a workdir that all of them see: they share the items, and the first one writes what is made of all.
"""

import ast
import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import PurePath

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from lvr_jax.checkpoints import CheckpointError, read_config
from lvr_jax.data.sample import DataError
from lvr_jax.evaluation import protocol as protocols
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.runner import load_benchmark
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.latents.conditions import ConditionError
from lvr_jax.latents.regions import RegionError
from lvr_jax.latents.sources import SourceError
from lvr_jax.latents.spec import SpecError
from lvr_jax.latents.sweep_files import SweepError
from lvr_jax.models.families import abstract_model, rules
from lvr_jax.models.interface import ConfigError
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.hosts import ALONE, Hosts, HostsError, code_version
from lvr_jax.prism.audit import Audit, Settings
from lvr_jax.prism.crossing import OTHERS
from lvr_jax.prism.measure.capture import LAYERS
from lvr_jax.prism.measure.corruptions import CONTEXTS
from lvr_jax.prism.measure.items import Items, template_for
from lvr_jax.prism.probes import readout
from lvr_jax.prism.probes.content import KINDS_OF_PROBE, ProbeError
from lvr_jax.prism.probes.controls import CONTROL_KINDS
from lvr_jax.prism.report import report
from lvr_jax.training.partitioning import MeshError, make_cell, shardings

DTYPES = {"": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}


class PrismError(ValueError):
    """A config of an audit that cannot be run."""


# What bad input raises, one line each; anything else is a fault of the program.
BAD_INPUT = (
    PrismError, CheckpointError, ConfigError, DataError, SpecError, ConditionError, SourceError, RegionError,
    SweepError, MeshError, ProbeError, HostsError,
)  # fmt: skip


def run(
    config: ConfigDict, workdir, *, progress: bool = True, say: Callable[[str], None] = lambda line: None,
    hosts: Hosts = ALONE, report_only: bool = False,
) -> epath.Path:  # fmt: skip
    """Audits every checkpoint of the config and writes the report; returns the page, or without a report the folder.

    report_only: only the analysis is made, and what an audit has not finished yet is an error.
    Raises one of BAD_INPUT, or MissingHost.
    """
    found = audited(config, workdir, progress=progress, say=say, hosts=hosts, report_only=report_only)
    page = epath.Path(workdir) / "report" / "report.html" if config.report else epath.Path(workdir)
    if config.report and hosts.first:
        say("report")
        found.report(page.parent)
    hosts.wait("report")
    return page


@dataclasses.dataclass(frozen=True)
class Audited:
    """The audits of a config's checkpoints, their analyses (None in processes other than the first), and which of the
    checkpoints are training seeds of one variant."""

    audits: list[Audit]
    analyses: list[dict | None]
    variants: tuple[str, ...]

    def report(self, folder) -> epath.Path:
        """Writes report.html and all that lies beside it; returns the page."""
        return report.write(self.audits, self.analyses, epath.Path(folder), variants=self.variants)


def audited(
    config: ConfigDict, workdir, *, progress: bool = True, say: Callable[[str], None] = lambda line: None,
    hosts: Hosts = ALONE, report_only: bool = False,
) -> Audited:  # fmt: skip
    """`run` without the report."""
    folders = names(config.checkpoint)
    if not folders:
        raise PrismError("checkpoint: none given, expected one folder or several with commas between them")
    labels = labels_of(folders, names(config.names))
    variants = names(config.variants) or labels
    if len(variants) != len(folders):
        raise PrismError(f"variants has {len(variants)} entries, expected {len(folders)}, one a checkpoint")
    settings = settings_of(config)
    hosts.same({"code": code_version(), "workdir": str(workdir), "config": json.loads(config.to_json_best_effort())})
    hosts.share(workdir)
    makers = makers_of(names(config.latents_from), folders, labels, epath.Path(workdir))
    audits, analyses = [], []
    for folder, label in zip(folders, labels):
        place = epath.Path(workdir) / report.slug(label)
        audit = prepare(config, settings, folder, label, place, progress, say, hosts, report_only)
        if OTHERS not in names(config.latents_from):
            audit.check_makers(makers[label])
        analyses.append(audit.run())
        audits.append(audit if makers[label] else audit.without_weights())      # those that are crossed run again
        hosts.progress(len(audits))
    for audit, analysis in zip(audits, analyses):
        if makers[audit.name]:
            crossed = audit.cross(makers[audit.name])
            if analysis is not None:
                analysis["crossed"] = crossed
    return Audited(audits, analyses, variants)


def makers_of(asked: Sequence[str], folders, labels, workdir: epath.Path) -> dict[str, dict[str, epath.Path]]:
    """checkpoint -> whose latents it is fed, by name: audits' folders, or `others` for all of this run's other ones."""
    if OTHERS not in asked:
        found = {epath.Path(folder).name: epath.Path(folder) for folder in asked}
        if len(found) < len(asked):
            raise PrismError(f"latents_from: {', '.join(asked)} do not all end in another name, expected that they do")
        return {label: found for label in labels}
    if len(asked) > 1 or len(labels) < 2:
        raise PrismError(f"latents_from is {', '.join(asked)!r} for {len(labels)} checkpoints, expected folders of "
                         f"audits, or {OTHERS!r} alone and two checkpoints at least")
    widths = {label: read_config(folder).text.hidden for folder, label in zip(folders, labels)}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{label} {width}" for label, width in widths.items())
        raise PrismError(f"latents_from is {OTHERS!r}, but latents have different widths: {shown}")
    return {label: {other: workdir / report.slug(other) for other in labels if other != label} for label in labels}


def prepare(
    config: ConfigDict, settings: Settings, folder: str, label: str, place, progress: bool, say, hosts: Hosts = ALONE,
    report_only: bool = False,
) -> Audit:  # fmt: skip
    """Loads one checkpoint and sets up its audit on the benchmark."""
    protocol = protocols.protocol(config.protocol, **keywords("switches", config.switches))
    benchmark = load_benchmark(config.benchmark, config.folder or None, protocol, any_count=config.any_count,
                               **keywords("options", config.options))  # fmt: skip
    if config.limit:
        benchmark = benchmark.subset(range(min(config.limit, len(benchmark))))
    if unlettered := [row.id for row in benchmark.rows if row.letter is None]:
        raise BenchmarkError(f"{benchmark.name}: item {unlettered[0]} is an open question; an audit needs lettered "
                             "options")  # fmt: skip
    cell = dataclasses.replace(make_cell(config.mesh, hosts), idle=report_only)
    network = read_config(folder)
    cut = None if cell.mesh is None else shardings(abstract_model(network)[1], rules(network), cell.mesh)
    compute = Compute.of_prompts(DTYPES[config.dtype])
    subject = open_subject(folder, system=config.system or None, shardings=cut, dtype=compute.dtype)
    items = Items(
        subject, benchmark, protocol, template_for(subject, config.alignment.template),
        rows=config.rows, programs=config.programs, seed=config.seed, force=config.force_latents,
    )  # fmt: skip
    return Audit(label, items, settings, place, compute, cell, progress, say)


def settings_of(config: ConfigDict) -> Settings:
    """The config's numbers and names, checked."""
    c = config.conditions
    rules = {
        "dtype": (config.dtype, config.dtype in DTYPES, ", ".join(d or "nothing" for d in DTYPES)),
        "capture.layers": (config.capture.layers, config.capture.layers in LAYERS, ", ".join(LAYERS)),
        "probes.control": (config.probes.control, config.probes.control in CONTROL_KINDS, ", ".join(CONTROL_KINDS)),
        "probes.content": (config.probes.content, config.probes.content in KINDS_OF_PROBE, ", ".join(KINDS_OF_PROBE)),
        "probes.controls": (config.probes.controls, config.probes.controls > 0, "1 at least"),
        "rows": (config.rows, 0 < config.rows <= 2**16, "1 at least, and 65536 at most"),
        "level": (config.level, 0 < config.level < 1, "a share between 0 and 1"),
        "draws": (config.draws, config.draws >= 100, "100 at least"),
        "limit": (config.limit, config.limit >= 0, "0 (all) or more"),
        "budget": (config.budget, config.budget >= 0, "0 (the protocol's) or more"),
        "conditions.sigmas": (c.sigmas, _positive(c.sigmas), "numbers above 0"),
        "conditions.alphas": (c.alphas, _positive(c.alphas), "numbers above 0"),
        "conditions.budgets": (c.budgets, _positive(c.budgets, int), "whole numbers above 0 (0: markers_only)"),
        "conditions.contexts": (c.contexts, set(names(c.contexts)) <= set(CONTEXTS), f"some of {', '.join(CONTEXTS)}"),
        "conditions.chunk": (c.chunk, c.chunk >= 0, "0 (as many as fit) or more"),
        "conditions.memory": (c.memory, 0 < c.memory < math.inf, "bytes, more than 0"),
        "programs": (config.programs, config.programs > 0, "1 at least"),
        "seed": (config.seed, 0 <= config.seed < 2**32, "0 or more, below 2**32"),
        "gallery": (config.gallery, config.gallery >= 0, "0 (none) or more"),
        "alignment.count": (config.alignment.count, config.alignment.count >= 0, "0 (no alignment) or more"),
        "alignment.latents": (config.alignment.latents, config.alignment.latents > 0, "1 at least"),
        "sensitivity.count": (config.sensitivity.count, config.sensitivity.count >= 0, "0 (none) or more"),
        "patching.count": (config.patching.count, config.patching.count >= 0, "0 (no map) or more"),
        "patching.layers": (config.patching.layers, all(isinstance(n, int) for n in config.patching.layers),
                            "whole numbers"),
        "probes.ladder": (config.probes.ladder, _positive(config.probes.ladder, int), "whole numbers above 0"),
    }
    for field, (value, sound, expected) in rules.items():
        if not sound:
            raise PrismError(f"{field} is {value!r}, expected {expected}")
    return Settings(
        conditions=names(c.names), sigmas=tuple(map(float, c.sigmas)), alphas=tuple(map(float, c.alphas)),
        budgets=tuple(c.budgets), per_latent=names(c.per_latent), contexts=names(c.contexts), crossed=names(c.crossed),
        budget=config.budget, layers=config.capture.layers,
        probes=readout.Settings(
            controls=config.probes.controls, control=config.probes.control, ladder=tuple(config.probes.ladder),
            content=config.probes.content,
            level=config.level, draws=config.draws, seed=config.seed,
        ),
        aligned=config.alignment.count, target_latents=config.alignment.latents,
        patched=config.patching.count, patched_condition=config.patching.condition,
        patched_layers=tuple(config.patching.layers), differentiated=config.sensitivity.count,
        attention=names(config.attention), gallery=config.gallery,
        level=config.level, draws=config.draws, seed=config.seed, chunk=c.chunk, memory=c.memory,
    )  # fmt: skip


def _positive(values: Sequence, kind: type = numbers.Real) -> bool:
    """Whether all values are finite positive numbers: a malformed flag arrives as text (`nan`, `0.1;1`)."""
    return all(isinstance(value, kind) and 0 < value < math.inf for value in values)


def names(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated string."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def labels_of(folders: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """What the report calls the checkpoints."""
    labels = given or tuple(PurePath(folder).name for folder in folders)
    if len(labels) != len(folders):
        raise PrismError(f"names has {len(labels)} entries, expected {len(folders)}, one a checkpoint")
    slugs = [report.slug(label) for label in labels]
    if len(set(slugs)) < len(slugs):
        raise PrismError(f"names: {', '.join(labels)} are not all different, expected --config.names to say otherwise")
    if "report" in slugs:
        raise PrismError("names: a checkpoint cannot be called 'report', expected --config.names to say otherwise")
    return labels


def keywords(field: str, text: str) -> dict:
    """`size=24, options=2` -> a dict; values are Python literals."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("not of the form name=value")
        return {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise BenchmarkError(f"{field} is {text!r}, expected name=value, name=value ({error})") from error
