"""Decodes one item's clean reply step by step, for whoever reads it while it is made.

A sweep is one compiled loop, which nothing leaves half-way. Here the same step is a program of its own that the host
calls again and again: tokens are those of the sweep, numbers equal up to fp32 rounding.
"""

from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import rollout
from lvr_jax.latents.reading import TAPS
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.sweep import Prompts, Sweeper, prefill
from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.models.compiler_options import Jit


def _begun(*arguments: Any, steps: int, **options: Any):
    return _read(rollout.begin(*arguments, steps=steps, **options), steps)


def _stepped(*arguments: Any, steps: int, **options: Any):
    return _read(rollout.step(*arguments, steps=steps, **options), steps)


def _read(carry: rollout.Carry, steps: int) -> tuple[rollout.Carry, tuple[jax.Array, jax.Array, jax.Array]]:
    """The loop's state, and of its only row: the token picked, whether a latent is fed in its place, whether it goes
    on."""
    goes_on = carry.goes_on(steps)
    return carry, (carry.row.token[0, 0], carry.row.inside[0, 0] & goes_on, goes_on)


_STATIC = ("decoding", "steps", "compute", "record")
begin = Jit(_begun, static_argnums=0, static_argnames=_STATIC)
# What is handed over is not kept: caches and trace are written in place.
step = Jit(_stepped, static_argnums=0, static_argnames=_STATIC, donate_argnames="carry")


def stream(sweeper: Sweeper, prompts: Prompts) -> Generator[tuple[int, bool], None, SweepResults]:
    """Yields for each step (token, latent): the id that was picked, and whether a latent is fed instead of it, which is
    said before it is. Returns what a sweep of the clean pass alone would hold. On one device.

    prompts: of one item
    """
    s, (item,) = sweeper, prompts.ids
    prefix, _ = prefill(
        s.graph, s.params, prompts.load(), prompts.numbers, compute=s.compute,
        remember_ids=s.decoding.repetition_penalty != 1, taps=TAPS, blocked=blocked(s.attention),
    )  # fmt: skip
    condition = cond.stack([cond.clean()], (), len(s.plan.spec.stages), s.latents)
    arguments = s.graph, s.params, prefix, s.plan, condition, rollout.no_bank(prefix, s.plan)
    options = dict(decoding=s.decoding, steps=s.steps([]), letters=np.asarray(s.letters, np.int32), seed=s.seed,
                   compute=s.compute, record=tuple(s.record))  # fmt: skip
    carry, said = begin(*arguments, **options)
    while True:
        token, latent, goes_on = jax.device_get(said)
        yield int(token), bool(latent)
        if not goes_on:
            break
        carry, said = step(*arguments, carry=carry, **options)
    arrays = s.kept(jax.device_get(carry.trace))
    return SweepResults(["clean"], [item], arrays, np.zeros((1, 1), bool), np.full((1, 1), -1), [cond.clean()])
