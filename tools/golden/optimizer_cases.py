"""Are five optimizer steps the reference's? Case H: losses, gradient norms, rates, decay groups, trained parameters."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from golden.case import Case, Check, equal, relative
from golden.training_cases import GRADIENT, LOSS, batch_of, gradient_of
from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.latents.objectives import Objective
from lvr_jax.models.qwen2_5_vl.layers import Compute
from lvr_jax.models.qwen2_5_vl.params import canonical, slots
from lvr_jax.training.optimizer import AdamW, decayed
from lvr_jax.training.partitioning import RULES, make_mesh
from lvr_jax.training.schedules import Points
from lvr_jax.training.state import abstract_state, start
from lvr_jax.training.step import Recipe, compiled_step

FROZEN = ("vision/.*",)


def check(case: Case) -> Iterator[Check]:
    meta, model, batch = case.meta, case.model, batch_of(case)
    # The reference reads trained parameters by name: those of the text, tied.
    optimizer = AdamW(
        peak=meta["lr"], betas=tuple(meta["betas"]), eps=meta["eps"], weight_decay=meta["weight_decay"],
        warmup_ratio=meta["warmup_steps"] / meta["total_steps"], clip=meta["max_grad_norm"],
    )  # fmt: skip
    transformation = optimizer.transformation(meta["total_steps"])
    mesh = make_mesh({}, jax.devices()[:1])
    like = abstract_state(model.params, FROZEN, transformation, RULES, mesh, jnp.float32)
    state = start(model.params, like, transformation, FROZEN)
    recipe = Recipe(
        graph=model.graph, objective=Objective(), compute=Compute(), transformation=transformation,
        rate=optimizer.rate(meta["total_steps"]), reconstruction=Points(((0, meta["lambda_lvr"]),)),
        own=Points(((0, 0.0),)),
    )  # fmt: skip
    before = jax.device_get(state.trained)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step, recorded = compiled_step(recipe, like, where, mesh), []
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, where)
        for _ in case["lr"]:
            state, metrics = step(state, batch)
            recorded.append(jax.device_get(metrics))
    for key, tolerance in (("loss_total", LOSS), ("loss_ce", LOSS), ("loss_lvr", LOSS), ("grad_norm", GRADIENT)):
        for i, metrics in enumerate(recorded):
            # Rounding grows from step to step: an update has the sign of its gradient, however small that is.
            yield relative(f"{key} of step {i}", metrics[key], case[key][i], tolerance)
    yield relative("lr", [metrics["learning_rate"] for metrics in recorded], case["lr"], 1e-6)
    yield from groups(case, model.config, state.trained)
    after = jax.device_get(state.trained)
    for key in case.arrays:
        if key.startswith("final::"):
            name = key.removeprefix("final::")
            yield relative(key, gradient_of(after, model.config, name), case[key], GRADIENT)
    moved = jax.tree.map(np.subtract, after, before)
    norms = [np.linalg.norm(gradient_of(moved, model.config, str(name))) for name in case["param_names"]]
    yield relative("param_delta_norms", norms, case["param_delta_norms"], GRADIENT)


def groups(case: Case, config, trained: dict) -> Iterator[Check]:
    """Number of parameters that are in the wrong group."""
    table, mask = slots(config), flat(decayed(trained, "official"))
    for key, wanted in (("decay_param_names", True), ("no_decay_param_names", False)):
        found = [mask[table[canonical(str(name))].path] for name in case[key]]
        yield equal(key, found, [wanted] * len(found))


CHECKERS = {"H": check}
