"""What should a person know who uses the tiny checkpoint? Its model card, written from the figures of its making."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lvr_jax.evaluation.scoring import Score

CARD = """---
license: apache-2.0
base_model: none
---
# The tiny checkpoint

A Qwen2.5-VL network of {millions:.2f} million parameters (windowed and full vision layers, grouped queries, M-RoPE,
merger), made from nothing by `python tools/make_tiny.py`. It is the base of the miniature study
(`tools/reproduce.py`) and of the tests. It knows digit search scenes and nothing else.

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

| {items} scenes with digit samples never trained on | right, 95 % interval |
|---|---|
{scores}

Chance is 25 % (the letter of four). Handwritten digits: scikit-learn's `load_digits` (UCI, CC BY 4.0). Weights are
bfloat16, seed {seed}.
"""


def card(
    config: ConfigDict, parameters: int, seeing: Mapping[str, float], training: Mapping[str, float],
    scores: Sequence[Score], cores: int,
) -> str:  # fmt: skip
    """seeing, training: figures of the stages with their `steps` and `seconds`; scores: of the finished checkpoint."""
    lines = [
        f"| {score.category or 'all'} | {score.value:.1%} [{score.low:.1%}, {score.high:.1%}] |" for score in scores
    ]
    return CARD.format(
        millions=parameters / 1e6, warm_steps=int(seeing["steps"]), warm_minutes=seeing["seconds"] / 60,
        digit=seeing["digit"], colour=seeing["colour"], rows=config.rows, steps=config.steps,
        minutes=training["seconds"] / 60, cores=cores, items=scores[0].items, scores="\n".join(lines),
        seed=config.seed,
    )  # fmt: skip
