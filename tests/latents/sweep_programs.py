"""The sweep that the tests of `latents.sweep` run, also as a program of its own (to be killed, or on eight devices).

    python sweep_programs.py FOLDER [batches] [slowly] [mesh]
"""

import sys
import time
from unittest import mock

import jax
import latent_models
import numpy as np
from latent_models import GRAPH, LETTERS, OPENING, STOP, batch_of, example, params, plan_of, start_of

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import regions
from lvr_jax.latents import sweep as sweeps
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.sources import SOURCES
from lvr_jax.latents.sweep import KEEP, Prompts, Sweeper
from lvr_jax.multihost.cell import Cell

PLAN = plan_of("lvr", 3)
CONDITIONS = [
    cond.zero(), cond.absolute_noise(0.3), cond.norm_matched_noise(), cond.matched_noise(),
    *(cond.replaced(source) for source in ("self", "donor", "donor_paper", "donor_other_label", "mean", "first_repeat",
                                           "reversed", "permuted", "oracle", "slot_embedding")),
    cond.budget(1), cond.markers_only(), cond.answer_blind_to_latents(),
]  # fmt: skip


def embedding(ids) -> np.ndarray:
    return params()["text"]["embed"][np.asarray(ids)]


def prompts(numbers, wait: float = 0.0, on_load=None) -> Prompts:
    numbers = list(numbers)

    def load():
        time.sleep(wait)
        if on_load:
            on_load(numbers)
        return batch_of(numbers, (start_of("lvr"),))

    def box(n):
        return None if n == 5 else [regions.slots(regions.rectangle((4, 2), n % 2, 0, 2, 2), example(n).grids)]

    def blank():
        """Item 3 has no such prompt."""
        seen = batch_of(numbers, (start_of("lvr"),))
        return {**seen, "patches": np.full_like(seen["patches"], 127)}, np.array([n != 3 for n in numbers])

    return Prompts(
        ids=tuple(f"item{n}" for n in numbers), batch=load, labels=[n % 3 for n in numbers],
        kinds=[n % 2 for n in numbers], contents=[n // 2 % 2 for n in numbers],
        regions={"box": [box(n) for n in numbers]}, variants={"blank": blank},
    )  # fmt: skip


def sweeper_of(*, chunk=None, seed=0, weights=0, mesh=None, keep=None, hold=1e9, sources=SOURCES) -> Sweeper:
    return Sweeper(
        GRAPH, params(weights), PLAN, Decoding(max_new_tokens=10, stop=(STOP,)), letters=LETTERS, opening=(OPENING,),
        keep=(*KEEP, "blocks", "count", "hidden@last_latent") if keep is None else keep, seed=seed, chunk=chunk,
        cell=Cell(mesh), hold=hold, progress=False, sources=sources,
    )  # fmt: skip


def run(sweeper, parts, conditions, folder, held=None):
    """lvr_jax.latents.sweep.run by the same programs, compiled quickly."""
    with mock.patch.multiple(sweeps, prefill=latent_models.prefill, sweep=latent_models.sweep):
        return sweeps.run(sweeper, parts, conditions, folder, held)


def sweep_into(folder, *, batches, conditions=None, wait=0.0, on_load=None, **how):
    conditions = CONDITIONS if conditions is None else conditions
    run(sweeper_of(**how), [prompts(b, wait, on_load) for b in batches], conditions, folder)


if __name__ == "__main__":
    folder, *options = sys.argv[1:]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto) if "mesh" in options else None
    batches = [range(3), range(3, 6), range(6, 8)] if "batches" in options else [range(8)]
    print(jax.device_count(), "devices")
    sweep_into(folder, batches=batches, mesh=mesh, wait=1.0 if "slowly" in options else 0.0)
