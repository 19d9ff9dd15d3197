"""Feeds a checkpoint the latents that other checkpoints produced for the same items.

Whether a reader answers as well from another's latents as from its own says what the two share; a table of readers by
makers takes apart what a checkpoint writes and what it reads. Latents come from finished audits' captures.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from lvr_jax.latents.conditions import Condition, name_number, replaced
from lvr_jax.latents.sources import Source, SourceError, recorded
from lvr_jax.latents.sweep_files import SweepFiles
from lvr_jax.prism.outcomes import Outcomes
from lvr_jax.prism.statistics.intervals import tango, wilson
from lvr_jax.prism.statistics.power import exact_mcnemar

OTHERS = "others"
PREFIX = "latents_of_"


def check(folder: epath.Path, items: Sequence[str], width: int, name: str) -> None:
    """Refuses an audit's folder whose latents checkpoint `name` cannot be fed. Raises SourceError, one line.

    items: the reader's ids; width: of its latents
    """
    files = SweepFiles(folder / "capture")
    if not (files.folder / "sweep.json").exists():
        raise SourceError(f"latents_from: {folder} has no capture, expected the folder of a finished audit")
    held = {i for batch in files.manifest()["items"] for i in batch}
    lacking = [i for i in items if i not in held]
    if lacking:
        raise SourceError(f"latents_from: {folder} is an audit of other items, {len(lacking)} of {len(items)} are not "
                          f"in it (the first: {lacking[0]})")  # fmt: skip
    found = files.load("clean", 0, ("blocks",))["blocks"].shape[-1]
    if found != width:
        raise SourceError(f"latents_from: {folder} has latents of width {found}, {name} has {width}; expected the same")


def source(folder: epath.Path) -> Source:
    """The latents that an audit's clean pass fed, by item; its digest is of the checkpoint, items and plan."""
    files = SweepFiles(epath.Path(folder) / "capture")
    manifest = files.manifest()
    parts = [files.load("clean", number, ("blocks", "count")) for number in range(len(manifest["items"]))]
    blocks, count = (np.concatenate([part[key] for part in parts]) for key in ("blocks", "count"))
    number = np.array([name_number(i) for batch in manifest["items"] for i in batch])
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return recorded(number, blocks, count, digest)


def conditions(makers: Sequence[str]) -> list[Condition]:
    """Conditions that feed the latents of other checkpoints, by maker."""
    return [replaced(PREFIX + maker) for maker in makers]


def sources(folders: Mapping[str, epath.Path]) -> dict[str, Source]:
    """Where the latents of each maker come from."""
    return {PREFIX + maker: source(folder) for maker, folder in folders.items()}


def table(found: Outcomes, makers: Sequence[str], level: float) -> dict[str, dict]:
    """maker -> accuracy of content with its latents and with own ones, on the items that both fed some in."""
    summed = {}
    for maker in makers:
        c = found.at(PREFIX + maker)
        rows = found.triggered & ~found.missing[c]
        own, fed = found.right[0][rows], found.right[c][rows]
        gained, lost, n = int((fed & ~own).sum()), int((own & ~fed).sum()), int(rows.sum())
        summed[maker] = {"items": n} | ({} if not n else {
            "own": wilson(int(own.sum()), n, level), "fed": wilson(int(fed.sum()), n, level),
            "difference": tango(gained, lost, n, level), "p": float(exact_mcnemar(gained, lost)),
        })  # fmt: skip
    return summed
