"""Named positions of a rollout, where the answer is read and where its latents are, as masks over steps.

Step s of a trace consumes one position and picks token s from its state. So the *answer state*, which picks the first
token after a completed `<answer>`, is the step after the one that picked the tag's last token (PRISM's position a).
A position is a mask [..., S] over steps: one step, several (a mean is taken), or none where a row has no such place.
Source: the repository xiuyuz/cosine-misleads, its file interpretability/probe_extract.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lvr_jax.latents.spec import Plan

AFTER = 4

def masks(
    trace: Mapping[str, np.ndarray], plan: Plan, opening: Sequence[Sequence[int]], latents: int = 0
) -> dict[str, np.ndarray]:
    """Named positions of a trace's rows, each [..., S] bool. `trace` is `vars(Trace)`, on the host.

    opening: the id sequences that complete an `<answer>` tag. A tokenizer may merge it with what precedes it, so there
    can be several. The spaced form `<answer> A` is meant: where the letter is merged into the tag's last token, the
    step after it is one too late, as it is in probe_extract.py.

    answer:       the state that picks the first token after the first completed tag; without a tag, the step after
                  the last latent (the paper's fallback)
    tagged:       the same without the fallback
    h0:           the state that is fed as the first latent
    latents:      the steps whose input is a latent (the paper's c is the mean of their outputs)
    last_latent:  the last of them (the paper's b: its output picks the first text token and is never fed)
    latent_J:     the step whose input is latent J of the first block, for J below the argument `latents`
    end:          the step that consumes the end marker
    after_K:      the K-th step after the last latent, K up to AFTER

    The last six are of the last stage that has latents; `NAME:STAGE` is the same of a stage by name.
    """
    host = {key: np.asarray(trace[key]) for key in ("token", "live", "latent", "stage", "index")}
    live, latent = host["live"], host["latent"] & host["live"]
    tagged = live & first(after(completed(host["token"], live, opening)))
    fallback = live & after(final(latent))
    found = {"tagged": tagged, "answer": np.where(tagged.any(-1, keepdims=True), tagged, fallback)}
    for g, stage in enumerate(plan.spec.stages):
        inside = latent & (host["stage"] == g)
        own = {"latents": inside, "last_latent": final(inside), "h0": before(first(inside))}
        # Blocks are told apart by their first latent: blocks of other stages may run beside this one.
        leading = inside & (np.cumsum(inside & (host["index"] == 0), -1) == 1)
        own |= {f"latent_{j}": leading & (host["index"] == j) for j in range(latents)}
        own |= {f"after_{k}": live & shifted(own["last_latent"], k) for k in range(1, AFTER + 1)}
        started = np.maximum.accumulate(inside, axis=-1)
        own["end"] = first(live & ~latent & after((host["token"] == int(plan.end[g])) & live) & started)
        found |= {f"{name}:{stage.name}": mask for name, mask in own.items()}
        fired = inside.any(-1, keepdims=True)
        for name, mask in own.items():
            found[name] = np.where(fired, mask, found[name]) if name in found else mask
    return found


def spoken(live: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """[..., S] bool: the token picked at the step is fed as text. Where a latent is fed instead, nobody reads it."""
    return live & ~before(latent & live)


def completed(token: np.ndarray, live: np.ndarray, opening: Sequence[Sequence[int]]) -> np.ndarray:
    """[..., S] bool: the token picked at the step completes one of the sequences."""
    found = np.zeros(token.shape, bool)
    for sequence in opening:
        hit = live.copy()
        for back, wanted in enumerate(reversed(tuple(sequence))):
            hit &= shifted(token == wanted, back)
        found |= hit
    return found


def shifted(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask moved `by` steps later (earlier if negative); what comes in is False."""
    moved, S = np.zeros_like(mask), mask.shape[-1]
    if abs(by) < S:
        moved[..., max(by, 0) : S + min(by, 0)] = mask[..., max(-by, 0) : S - max(by, 0)]
    return moved


def after(mask: np.ndarray) -> np.ndarray:
    """The mask of the positions one step later."""
    return shifted(mask, 1)


def before(mask: np.ndarray) -> np.ndarray:
    """The mask of the positions one step earlier."""
    return shifted(mask, -1)


def first(mask: np.ndarray) -> np.ndarray:
    """Only the first True of each row."""
    return mask & (np.cumsum(mask, -1) == 1)


def final(mask: np.ndarray) -> np.ndarray:
    """Only the last True of each row."""
    return first(mask[..., ::-1])[..., ::-1]


def step(mask: np.ndarray) -> np.ndarray:
    """[...] int32: the first step of the mask, -1 where there is none."""
    return np.where(mask.any(-1), mask.argmax(-1), -1).astype(np.int32)


def mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[..., S, *rest] averaged over the mask's steps, fp32: NaN where a row has none."""
    rest = values.ndim - mask.ndim
    chosen = mask.reshape(*mask.shape, *[1] * rest)
    count = mask.sum(-1).reshape(*mask.shape[:-1], *[1] * rest)
    total = np.where(chosen, values.astype(np.float32), 0).sum(mask.ndim - 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan)).astype(np.float32)
