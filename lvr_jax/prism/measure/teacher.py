"""Latents under teacher forcing, as training saw them: predicted and target latents of each stage.

The pass of training (latents.objectives.forward), without noise: the state at p - 1 against the vision token at p.
This is the paper's alignment; the free-running one compares what `prism.capture` kept with the same targets.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.data.chat import encode_example
from lvr_jax.data.packing import collate
from lvr_jax.data.sample import Example
from lvr_jax.evaluation.batches import batches
from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.latents.reading import Held
from lvr_jax.latents.sweep_files import SweepFiles
from lvr_jax.models.compiler_options import Jit
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.cell import Cell
from lvr_jax.prism.measure.items import Items
from lvr_jax.progress import tqdm

MANIFEST_KEY = "teacher_forced"
PICTURES = ("patches", "window_segment", "rotary_ids")      # what a batch holds for the vision tower alone


@dataclasses.dataclass(frozen=True)
class Forced:
    """One stage's latents of the items with boxes: predicted, target [I, Z, D], valid [I, Z], fp32."""

    stage: str
    items: list[str]
    predicted: np.ndarray
    target: np.ndarray
    valid: np.ndarray


@functools.partial(Jit, static_argnames=("graph", "compute", "attention"))
def _forward(graph, params, batch, merged, compute: Compute, attention: str):
    from flax import nnx

    weights = Weights(jnp.float32(0), jnp.float32(0))
    objective = Objective(attention=attention)
    out = objectives.forward(
        nnx.merge(graph, params), batch, objective, weights, jax.random.key(0), compute, merged=merged
    )
    return out["predicted"], out["target"]


def run(
    items: Items, folder, *, count: int, latents: int, compute: Compute, cell: Cell = Cell(),  # noqa: B008
    progress: bool = True, held: Held | None = None,
) -> int:  # fmt: skip
    """Teacher-forces the first `count` items that have boxes; returns how many batches this cell ran.

    latents: at most so many of a stage are kept (a large box has thousands); held: pictures that were encoded already
    """
    wanted = np.flatnonzero(items.boxed)[:count]
    files = SweepFiles(folder)
    examples = {int(i): _example(items, int(i)) for i in wanted}
    planned = batches([items.geometry.size(examples[int(i)]) for i in wanted], items.rows, items.programs)
    ids = [[items.ids[wanted[i]] for i in batch.items] for batch in planned]
    files.open({
        MANIFEST_KEY: items.template.name, "items": ids, "latents": latents,
        "asked": [[items.asked[wanted[i]] for i in batch.items] for batch in planned], "weights": items.subject.weights,
        "dtype": str(jnp.dtype(compute.dtype)), "attention": items.subject.attention, "stages": _visual(items),
    }, cell)  # fmt: skip
    missing = files.missing(["forced"], len(planned), cell)["forced"]
    to_do = sum(len(planned[number].items) for number in missing) * cell.count
    with tqdm(
        total=len(wanted), initial=max(len(wanted) - to_do, 0), unit="item", desc="teacher forcing",
        disable=not (progress and cell.reports),
    ) as bar:  # fmt: skip
        for number in missing:
            rows = [examples[int(wanted[i])] for i in planned[number].items]
            merged = None if held is None else held.merged(tuple(ids[number]), cell.filled(items.rows))
            made = _run(items, rows, planned[number].budget, latents, compute, cell, merged)
            if cell.is_writer:
                files.write("forced", number, made)
            cell.hosts.progress(number)
            bar.update(len(rows) * cell.count)
    cell.hosts.wait("teacher forcing is finished")
    return len(missing)


def _example(items: Items, i: int) -> Example:
    return encode_example(
        items.benchmark[i], items.subject.tokenizer, items.template, answer_format="tagged_letter", **items.limits
    )


def _visual(items: Items) -> list[str]:
    return [stage.name for stage in items.template.stages if stage.box_scale is not None]


def _run(
    items: Items, rows: Sequence[Example], budget, latents: int, compute: Compute, cell: Cell, merged
) -> dict[str, np.ndarray]:
    filled = [*rows, *[rows[0]] * (cell.filled(items.rows) - len(rows))]
    batch = collate([[example] for example in filled], budget, items.geometry)
    needed = batch if merged is None else {key: value for key, value in batch.items() if key not in PICTURES}
    predicted, target = cell.fetch(_forward(
        items.subject.graph, items.subject.params, cell.rows(needed), merged, compute, items.subject.attention
    ))
    kept = {}
    for number, stage in enumerate(items.template.stages, start=1):
        if stage.box_scale is None:
            continue
        shape = (len(rows), latents, predicted.shape[-1])
        arrays = {"predicted": np.zeros(shape, np.float32), "target": np.zeros(shape, np.float32)}
        valid = np.zeros(shape[:2], bool)
        for b in range(len(rows)):
            here = np.flatnonzero((batch["stage"][b] == number) & (batch["vision_slot"][b] >= 0))
            here = here[batch["group"][b][here] == batch["group"][b][here[:1]]][:latents]      # the first box's block
            arrays["predicted"][b, : len(here)], arrays["target"][b, : len(here)] = predicted[b, here], target[b, here]
            valid[b, : len(here)] = True
        kept |= {f"{name}@{stage.name}": value for name, value in arrays.items()} | {f"valid@{stage.name}": valid}
    return kept


def read(folder) -> list[Forced]:
    """Every visual stage of a finished pass, items in the order of the files."""
    files = SweepFiles(folder)
    manifest = files.manifest()
    parts = [files.load("forced", number) for number in range(len(manifest["items"]))]
    join = lambda key: np.concatenate([part[key] for part in parts])  # noqa: E731
    ids = [i for batch in manifest["items"] for i in batch]
    return [Forced(s, ids, join(f"predicted@{s}"), join(f"target@{s}"), join(f"valid@{s}")) for s in manifest["stages"]]
