"""The programs that an experiment compiles, with abstract arguments: nothing is allocated."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lvr_jax.data.packing import Batch, Budget, align, lay_out_row
from lvr_jax.data.synthetic import synthetic_batches, synthetic_example
from lvr_jax.evaluation import generation
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import sweep as sweeps
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.rollout import Bank
from lvr_jax.latents.spec import Plan, plan, system
from lvr_jax.models.families import abstract_model
from lvr_jax.models.layers import Compute
from lvr_jax.training import held_out
from lvr_jax.training.experiment import Experiment, sharding_rules
from lvr_jax.training.flops import batch_flops
from lvr_jax.training.partitioning import shardings
from lvr_jax.training.state import join

FIRST_ADDED = 151665        # the id of a stock vocabulary's first latent token


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a config does not say of a prefill, a sweep, an evaluation or a held-out measurement: items a batch, tokens
    of a prompt, conditions at a time, new tokens."""

    items: int = 8
    prompt: int = 4096
    conditions: int = 64
    new_tokens: int = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """jitted.lower(*args, **options) is what runs.

    tower: share of the tower's layers that attend to whole images, which the HLO does not tell; flops: model FLOPs of
    one run (None where it is not counted); devices: that it runs on; segments: ids of a row's tokens (`decoder`) and
    patches (`tower`), by which attention skips
    """

    jitted: Callable
    args: tuple
    options: dict[str, Any]
    tower: float
    devices: int
    flops: float | None = None
    segments: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, experiment: Experiment, jitted: Callable, *args, flops: float | None = None, row: Batch | None = None,
        **options,
    ) -> "Program":  # fmt: skip
        c = experiment.network.vision
        full = len([i for i in c.full_attention_layers if i < c.depth])
        parts = {} if row is None else {"decoder": row["segment"], "tower": row["window_segment"]}
        segments = {part: ids.reshape(-1) for part, ids in parts.items()}
        return cls(jitted, args, options, full / c.depth, experiment.mesh.size, flops, segments)


def full_row(budget: Budget, experiment: Experiment, examples: int) -> Batch:
    """One row [1, ...] as full as square images make it."""
    geometry = experiment.data.settings.geometry
    share = Budget(budget.tokens // examples, budget.windows // examples)
    row = lay_out_row([synthetic_example(share, geometry, seed) for seed in range(examples)], budget, geometry)
    return {key: x[None] for key, x in row.items()}


def train(experiment: Experiment) -> Program:
    """The training step, as `tools/train.py` runs it."""
    data = experiment.data
    if experiment.branches:
        settings = data.settings
        row = next(synthetic_batches(settings.budget, [0], settings.geometry, experiment.branches)).arrays
    else:
        row = full_row(data.settings.budget, experiment, data.max_per_row or 1)
        row = align(row, experiment.alignment) if experiment.alignment else row
    flops, _ = batch_flops(experiment.network, row, train_vision="vision" in experiment.like.trained)
    batch = _repeated(row, data.rows, experiment.rows)
    return Program.of(experiment, experiment.step(), experiment.like, batch, flops=flops * data.rows, row=row)


def _repeated(row: Batch, rows: int, where: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    return {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=where) for key, x in row.items()}


def frozen_params(experiment: Experiment) -> dict:
    """All parameters as an audit holds them: in the type of the computation, cut as in training."""
    params = abstract_model(experiment.network, experiment.recipe.compute.dtype)[1]
    where = shardings(params, sharding_rules(experiment.config, experiment.network), experiment.mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)


def _prompts(experiment: Experiment, asked: Asked) -> tuple[dict, jax.ShapeDtypeStruct]:
    """Image and question of a batch of items, and the items' numbers."""
    windows = asked.prompt * experiment.data.windows // experiment.data.tokens
    row = full_row(Budget(asked.prompt, windows), experiment, 1)
    item = jax.ShapeDtypeStruct((asked.items,), jnp.int32, sharding=experiment.rows)
    return _repeated(row, asked.items, experiment.rows), item


def _latents(experiment: Experiment) -> tuple[Plan, Decoding]:
    """The plan of the config's system, with a stock vocabulary's ids, and a decoding that ends with its first block."""
    c = experiment.config.system
    spec = system(c.name)
    ids = {token: FIRST_ADDED + i for i, token in enumerate(spec.added_tokens)}
    return plan(spec, ids, c.budget), Decoding(0, (ids[spec.stages[0].end],))


def _audited(experiment: Experiment) -> Compute:
    """How an audit and an evaluation run the network (prism.experiment, tools/evaluate.py)."""
    return Compute(experiment.recipe.compute.dtype)


def prefill(experiment: Experiment, asked: Asked) -> Program:
    """A sweep's first part: image and question of a batch of items."""
    batch, item = _prompts(experiment, asked)
    params = frozen_params(experiment)
    return Program.of(experiment, sweeps.prefill, experiment.graph, params, batch, item, compute=_audited(experiment))


def _on_mesh(experiment: Experiment, tree: Any) -> Any:
    whole = NamedSharding(experiment.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def _letters(experiment: Experiment) -> jax.ShapeDtypeStruct:
    return _on_mesh(experiment, jax.ShapeDtypeStruct((4,), jnp.int32))


def sweep(experiment: Experiment, asked: Asked, prefix: Any) -> Program:
    """The sweep over a prefix (shapes with the shardings that prefill gives them): latents and answer, C at a time."""
    here, decoding = _latents(experiment)
    latents, stages, width = int(np.max(here.quota)), len(here.spec.stages), experiment.network.text.hidden
    named = [cond.absolute_noise(0.01 * (i + 1)) for i in range(asked.conditions)]
    by_rows = NamedSharding(experiment.mesh, PartitionSpec(None, *experiment.rows.spec))
    source = jax.ShapeDtypeStruct((1, asked.items, stages, 1, width), jnp.float32, sharding=by_rows)
    spread = _on_mesh(experiment, jax.ShapeDtypeStruct((width,), jnp.float32))
    return Program.of(
        experiment, sweeps.sweep, experiment.graph, frozen_params(experiment), prefix, _on_mesh(experiment, here),
        _on_mesh(experiment, cond.stack(named, [], stages, latents)), Bank(source, spread),
        decoding=dataclasses.replace(decoding, max_new_tokens=asked.new_tokens), steps=asked.new_tokens + latents,
        letters=_letters(experiment), compute=_audited(experiment),
    )  # fmt: skip


def evaluate(experiment: Experiment, asked: Asked) -> Program:
    """A batch of an evaluation: prompts, latents and answers."""
    here, decoding = _latents(experiment)
    batch, item = _prompts(experiment, asked)
    return Program.of(
        experiment, generation.program, experiment.graph, frozen_params(experiment), _on_mesh(experiment, here), batch,
        item, _letters(experiment), decoding=dataclasses.replace(decoding, max_new_tokens=asked.new_tokens),
        steps=asked.new_tokens + int(np.max(here.quota)), compute=_audited(experiment), attention="full",
    )  # fmt: skip


def taught(experiment: Experiment, asked: Asked) -> Program:
    """Held-out examples with teacher forcing, one a row."""
    params, (batch, _) = join(experiment.like.trained, experiment.like.frozen), _prompts(experiment, asked)
    return Program.of(experiment, held_out.teacher_forcing(experiment.recipe, experiment.mesh), params, batch)


def free(experiment: Experiment, asked: Asked) -> Program:
    """Replies to held-out prompts."""
    here, decoding = _latents(experiment)
    decoding = dataclasses.replace(decoding, max_new_tokens=experiment.config.held_out.max_new_tokens)
    params, (batch, _) = join(experiment.like.trained, experiment.like.frozen), _prompts(experiment, asked)
    jitted = held_out.free_replies(experiment.recipe, experiment.mesh, here, decoding)
    return Program.of(experiment, jitted, params, batch)
