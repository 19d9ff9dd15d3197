"""Measures the rotation base and writes its model card."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from lvr_jax.data.rotation_scenes import RotationAnalogies
from lvr_jax.evaluation.protocol import protocol
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.scoring import Score, summarise
from lvr_jax.evaluation.subject import open_subject
from tiny.cards import HEAD
from tiny.offsets import Right
from tiny.offsets import measure as behind

# Rows of the card: what is in view, and of which shapes.
VIEWS: dict[str, dict[str, Any]] = {
    "shapes of training, the solution hidden": {"split": "validation"},
    "the same, the solution in view": {"split": "validation", "mask_box": False},
    "the same, solution and shape 3 hidden": {"split": "validation", "mask_query": True},
    "held-out shapes, the solution hidden": {"split": "test"},
    "held-out shapes, solution and shape 3 hidden": {"split": "test", "mask_query": True},
}
OFFSETS, LAYOUTS = (0, 2, 4), ("lvr",)

CARD = HEAD + """# The rotation base: a tiny network that answers rotation analogies

The network of [the tiny checkpoint](../tiny/README.md), taught analogies of turned shapes instead of digits
(`lvr_jax/data/rotation_scenes.py`): two rows of four panels, and "Shape 1 is to shape 2 as shape 3 is to what?", with
four options in the row below. The solution's panel is empty in what it sees. Made from the tiny checkpoint by
`python tools/make_rotation.py`, for the block `rotation` of [the full study](../full_study/README.md).

**Input.** One picture of 112x56 pixels, a merged token a panel. **Output.** The place, then the letter:
`second <answer> B </answer>`.

1. A tokenizer with the words of these questions; embeddings of tokens that both have are kept.
2. Vision warm-up, {warm_steps} steps: **each panel is told** which of its cells are filled, by how many degrees its
   shape is turned (shape 2 against shape 1, the solution and the options against shape 3), and its place in the row
   below, the last two as the words' own embeddings. **A solution in view is told the place of the option that it
   equals**, so that a true latent says which option is right. A third of the pictures show everything, a third hide
   the solution, a third shape 3 as well.
3. The steps of an analogy as questions (`configs/rotation_steps.py`), {steps[0]} steps: by how many
   degrees is shape 2 turned, and which option is turned by so many. Tower and merger are frozen.
4. Analogies, among these and others that say the turn, with 0 to {filler} tokens of filler before the reply
   (`configs/rotation_base.py`), {steps[1]} steps.

So the tower turns and compares, and the decoder looks up: nothing here was learnt from answers alone, which left the
decoder at chance. It has never seen a latent block, nor made a latent.

| {panels} pictures, panels named right | shapes of training | held-out shapes |
|---|---|---|
{seen}

| {items} analogies, decoded greedily | right, 95 % interval |
|---|---|
{scores}

Chance is 25 %; who sees shape 3 knows that it is never the answer, and has one in three. Now the first row with
newlines before the reply, and with a latent block that holds the true latent of the solution:

| before the reply | word | letter |
|---|---|---|
{offsets}

Weights are bfloat16, seed {seed}.
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """scores: by row of VIEWS; right: by what stands before the reply."""

    scores: Mapping[str, Score]
    right: Mapping[str, Right]


def score(folder: Path, name: str, items: int, results: Path) -> Score:
    """Accuracy of the decoded reply in one of VIEWS."""
    ways = protocol("clean", max_new_tokens=16)
    benchmark = load_benchmark("rotation", None, ways, size=items, **VIEWS[name])
    subject = open_subject(folder, system="none", dtype=jnp.float32)
    return summarise(run(subject, benchmark, ways, results, rows=100).marks(), ["micro"])[0]


def measure(folder: Path, items: int, work: Path) -> Measured:
    """All that the card states of the finished checkpoint."""
    scores = {name: score(folder, name, items, work / f"view_{n}.jsonl") for n, name in enumerate(VIEWS)}
    analogies = RotationAnalogies(items, split="validation")
    return Measured(scores, behind(folder, items, OFFSETS, LAYOUTS, [analogies[i] for i in range(items)]))


def card(
    config: ConfigDict, seeing: Mapping[str, Any], steps: Sequence[int], measured: Measured
) -> str:
    """seeing: figures of the warm-up; steps: of each stage on questions."""
    known, unseen = (seeing["panels"][split] for split in ("validation", "test"))
    named = {"cells": "cells, all of a panel", "turn": "turn", "place": "place",
             "solution's place": "place, of the solution"}  # fmt: skip
    rows = [f"| {text} | {known[name]:.1%} | {unseen[name]:.1%} |" for name, text in named.items()]
    scores = [f"| {name} | {s.value:.1%} [{s.low:.1%}, {s.high:.1%}] |" for name, s in measured.scores.items()]
    words = {**{str(n): f"{n} newlines" for n in OFFSETS}, **{name: "a block with the true latent" for name in LAYOUTS}}
    offsets = [f"| {words[name]} | {r.word:.1%} | {r.letter:.1%} |" for name, r in measured.right.items()]
    items = next(iter(measured.scores.values())).items
    return CARD.format(
        warm_steps=seeing["steps"], steps=steps, filler=config.data.filler, panels=seeing["panels"]["pictures"],
        seen="\n".join(rows), scores="\n".join(scores), items=items, offsets="\n".join(offsets), seed=config.seed,
    )  # fmt: skip
