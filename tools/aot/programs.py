"""Which programs does an experiment compile, and with arrays of what shape? Nothing here is ever allocated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lvr_jax.data.packing import Batch, Budget, align, lay_out_row
from lvr_jax.data.synthetic import synthetic_example
from lvr_jax.latents import conditions as cond
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.rollout import Bank
from lvr_jax.latents.spec import plan, system
from lvr_jax.latents.sweep import prefill, sweep
from lvr_jax.models.qwen2_5_vl.model import abstract_model
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.flops import batch_flops
from lvr_jax.training.partitioning import shardings

FIRST_ADDED = 151665        # the id of a stock vocabulary's first latent token


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a config does not say of a sweep: items a batch, tokens of a prompt, conditions at a time, new tokens."""

    items: int = 8
    prompt: int = 4096
    conditions: int = 64
    new_tokens: int = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """jitted.lower(*args, **options) is what runs; flops: model FLOPs of one run (None where it is not counted)."""

    jitted: Callable
    args: tuple
    options: dict[str, Any]
    flops: float | None = None


def full_row(budget: Budget, experiment: Experiment, examples: int) -> Batch:
    """One row [1, ...] as full as square images make it."""
    geometry = experiment.data.settings.geometry
    share = Budget(budget.tokens // examples, budget.windows // examples)
    row = lay_out_row([synthetic_example(share, geometry, seed) for seed in range(examples)], budget, geometry)
    return {key: x[None] for key, x in row.items()}


def train(experiment: Experiment) -> Program:
    """The training step, as `tools/train.py` runs it."""
    data = experiment.data
    row = full_row(data.settings.budget, experiment, data.max_per_row or 1)
    row = align(row, experiment.alignment) if experiment.alignment else row
    flops, _ = batch_flops(experiment.network, row, train_vision="vision" in experiment.like.trained)
    batch = _repeated(row, data.rows, experiment.rows)
    return Program(experiment.step(), (experiment.like, batch), {}, flops * data.rows)


def _repeated(row: Batch, rows: int, where: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    return {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=where) for key, x in row.items()}


def frozen_params(experiment: Experiment) -> dict:
    """All parameters as an audit holds them: in the type of the computation, cut as in training."""
    params = abstract_model(experiment.network, experiment.recipe.compute.dtype)[1]
    where = shardings(params, [tuple(rule) for rule in experiment.config.sharding], experiment.mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)


def prompts(experiment: Experiment, asked: Asked) -> Program:
    """Prefill: image and question of a batch of items."""
    windows = asked.prompt * experiment.data.windows // experiment.data.tokens
    row = full_row(Budget(asked.prompt, windows), experiment, 1)
    batch = _repeated(row, asked.items, experiment.rows)
    item = jax.ShapeDtypeStruct((asked.items,), jnp.int32, sharding=experiment.rows)
    compute = experiment.recipe.compute
    return Program(prefill, (experiment.graph, frozen_params(experiment), batch, item), {"compute": compute})


def conditions(experiment: Experiment, asked: Asked, prefix: Any) -> Program:
    """The sweep over a prefix (shapes with the shardings that prefill gives them): latents and answer, C at a time."""
    c, mesh = experiment.config, experiment.mesh
    spec = system(c.system.name)
    ids = {token: FIRST_ADDED + i for i, token in enumerate(spec.added_tokens)}
    here = plan(spec, ids, c.system.budget)
    latents = int(np.max(here.quota))
    named = [cond.absolute_noise(0.01 * (i + 1)) for i in range(asked.conditions)]
    stages, width = len(spec.stages), experiment.network.text.hidden
    whole = NamedSharding(mesh, PartitionSpec())
    on_mesh = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)  # noqa: E731
    by_rows = NamedSharding(mesh, PartitionSpec(None, *experiment.rows.spec))
    source = jax.ShapeDtypeStruct((1, asked.items, stages, 1, width), jnp.float32, sharding=by_rows)
    spread = jax.ShapeDtypeStruct((width,), jnp.float32, sharding=whole)
    args = (
        experiment.graph, frozen_params(experiment), prefix, on_mesh(here),
        on_mesh(cond.stack(named, [], stages, latents)), Bank(source, spread),
    )  # fmt: skip
    options = {
        "decoding": Decoding(asked.new_tokens, (ids[spec.stages[0].end],)), "steps": asked.new_tokens + latents,
        "letters": jax.ShapeDtypeStruct((4,), jnp.int32, sharding=whole), "compute": experiment.recipe.compute,
    }  # fmt: skip
    return Program(sweep, args, options)
