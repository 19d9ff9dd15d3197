"""Writes the model cards of the two tiny checkpoints from the figures of their making."""

import os
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lvr_jax.evaluation.scoring import Score
from tiny.offsets import LAYOUTS, Right

HEAD = """---
license: apache-2.0
base_model: none
---
"""

ONE_OFFSET = HEAD + """# The tiny checkpoint before its last stage: it replies at one offset only

A Qwen2.5-VL network of {millions:.2f} million parameters (windowed and full vision layers, grouped queries, M-RoPE,
merger), made from nothing by `python tools/make_tiny.py`. [The base of the miniature study](../tiny/README.md) goes on
from here. This one shows what a base does that has learnt to reply right behind the prompt and nowhere else.

**Input.** One picture of 112x112 pixels with four handwritten digits in eight colours, and "What colour is the 7?" or
"Which digit is red?" with four options. **Output.** The word, then the letter: `red <answer> B </answer>`.

1. Vision warm-up, {warm_steps} steps, {warm_minutes:.1f} minutes: **every image token is told which digit it shows and
   in which colour**, from the scenes' own boxes. Afterwards {digit:.1%} (digit) and {colour:.1%} (colour) of the tokens
   of held-out scenes are named right. Then words after a space, and letters, get the embedding of their twins (" red"
   of "red", " B" of "(B").
2. Digit search (`configs/tiny_base.py`), {steps} steps, {minutes:.1f} minutes: the answer alone; tower and merger are
   frozen.

So this network did not learn to see from questions; nothing in the study depends on how it did. Minutes are of
{cores} processor cores that did other things too.

{tables}
"""

TINY = HEAD + """# The tiny checkpoint: the base of the miniature study

A Qwen2.5-VL network of 1.24 million parameters that knows digit search scenes and nothing else. `tools/reproduce.py`
trains its variants from it, and the tests use it. Picture, question and reply are those of
[the checkpoint that it goes on from](../tiny_one_offset/README.md), whose card tells how it learnt to see and answer.

That one replies right behind the prompt only: whatever stands before its reply, newlines or a latent block, it cannot
copy the letter any more. So {steps} more steps ({minutes:.1f} processor minutes) on the same questions, with **0 to
{filler} tokens of filler before the reply** (`configs/tiny_base_filler.py`; tower and merger frozen). Half of the
examples have newlines there. The others have, token by token and drawn blindly, **cells of their own picture**, special
tokens of latent reasoning, or newlines: this network has seen vectors like true latents in that place, and that they
mean nothing in particular. It has never seen a latent block, nor made a latent.

{tables}
"""

TABLES = """| {items} scenes with digit samples never trained on | right, 95 % interval |
|---|---|
{scores}

Chance is 25 % (the letter of four). Decoded greedily, no filler. Now the same scenes with newlines before the reply,
and with a latent block of *true* latents (the vision tokens of the box, or of its surroundings) as each template lays
it out. The word is the reply's first; the letter counts where the whole reply up to it is right.

| newlines before the reply | word | letter |
|---|---|---|
{offsets}

| block of true latents before the reply | word | letter |
|---|---|---|
{layouts}

Handwritten digits: scikit-learn's `load_digits` (UCI, CC BY 4.0). Weights are bfloat16, seed {seed}."""


def one_offset(
    config: ConfigDict, parameters: int, seeing: Mapping[str, float], training: Mapping[str, float],
    scores: Sequence[Score], right: Mapping[str, Right],
) -> str:  # fmt: skip
    """seeing, training: figures of the stages with `seconds`; the rest: of the finished checkpoint."""
    return ONE_OFFSET.format(
        millions=parameters / 1e6, warm_steps=int(seeing["steps"]), warm_minutes=seeing["seconds"] / 60,
        digit=seeing["digit"], colour=seeing["colour"], steps=config.steps, minutes=training["seconds"] / 60,
        cores=os.cpu_count(), tables=_tables(config, scores, right),
    )  # fmt: skip


def tiny(
    config: ConfigDict, rounds: Sequence[tuple[int, float]], scores: Sequence[Score], right: Mapping[str, Right]
) -> str:
    """rounds: (steps, processor seconds) of each."""
    return TINY.format(
        steps=" and then ".join(f"{steps:,}" for steps, _ in rounds), filler=config.data.filler,
        minutes=sum(seconds for _, seconds in rounds) / 60, tables=_tables(config, scores, right),
    )  # fmt: skip


def _tables(config: ConfigDict, scores: Sequence[Score], right: Mapping[str, Right]) -> str:
    lines = [f"| {s.category or 'all'} | {s.value:.1%} [{s.low:.1%}, {s.high:.1%}] |" for s in scores]
    row = lambda name: f"| {name} | {right[name].word:.1%} | {right[name].letter:.1%} |"  # noqa: E731
    return TABLES.format(
        items=scores[0].items, scores="\n".join(lines), seed=config.seed,
        offsets="\n".join(row(name) for name in right if name not in LAYOUTS),
        layouts="\n".join(row(name) for name in LAYOUTS),
    )  # fmt: skip
