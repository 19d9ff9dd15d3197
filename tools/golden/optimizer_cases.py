"""Compares five optimizer steps with the reference's (case H): losses, norms, rates, decay groups, parameters."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from golden.case import Case, Check, equal, relative
from golden.training_cases import GRADIENT, LOSS, batch_of, gradient_of
from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.latents.objectives import Objective
from lvr_jax.models.families import rules, slots
from lvr_jax.models.layers import Compute
from lvr_jax.models.weight_table import canonical
from lvr_jax.training.optimizer import AdamW, decayed
from lvr_jax.training.partitioning import make_mesh
from lvr_jax.training.schedules import Points
from lvr_jax.training.state import State, abstract_state, split, start
from lvr_jax.training.step import Recipe, compiled_step, train_step

FROZEN = ("vision/.*",)
METRICS = ("loss_total", "loss_ce", "loss_lvr", "grad_norm")
ROUNDED = 4     # runs in fp64 from weights that are half a unit of fp32's last place off


def check(case: Case) -> Iterator[Check]:
    """Compares five optimizer steps."""
    model, batch = case.model, batch_of(case)
    recipe = recipe_of(case, jnp.float32)
    mesh = make_mesh({}, jax.devices()[:1])
    like = abstract_state(model.params, FROZEN, recipe.transformation, rules(model.config), mesh, jnp.float32)
    state = start(model.params, like, recipe.transformation, FROZEN)
    before = jax.device_get(state.trained)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step, recorded = compiled_step(recipe, like, where, mesh), []
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, where)
        for _ in case["lr"]:
            state, metrics = step(state, batch)
            recorded.append(jax.device_get(metrics))
    after = jax.device_get(state.trained)
    ours, apart = measured(case, recorded, before, after), apart_by_rounding(case)
    for key, values in ours.items():
        least = LOSS if key.startswith("loss") else GRADIENT
        for name, value, wanted, far in _lines(case, key, values, apart[key]):
            yield relative(name, value, wanted, max(least, 2 * far))
    yield relative("lr", [metrics["learning_rate"] for metrics in recorded], case["lr"], 1e-6)
    yield from groups(case, model.config, state.trained)


def _lines(case: Case, key: str, values, far) -> Iterator[tuple]:
    """A line a step of what is recorded at every step, one line of the rest."""
    if key not in METRICS:
        yield key, values, case[key], far.max()
        return
    for i, value in enumerate(values):
        yield f"{key} of step {i}", value, case[key][i], far[i]


def recipe_of(case: Case, dtype) -> Recipe:
    """The recorded run's step, computed in `dtype`."""
    meta = case.meta
    # The reference reads trained parameters by name: those of the text, tied.
    optimizer = AdamW(
        peak=meta["lr"], betas=tuple(meta["betas"]), eps=meta["eps"], weight_decay=meta["weight_decay"],
        warmup_ratio=meta["warmup_steps"] / meta["total_steps"], clip=meta["max_grad_norm"],
    )  # fmt: skip
    return Recipe(
        graph=case.model.graph, objective=Objective(), compute=Compute(dtype),
        transformation=optimizer.transformation(meta["total_steps"]), rate=optimizer.rate(meta["total_steps"]),
        reconstruction=Points(((0, meta["lambda_lvr"]),)), own=Points(((0, 0.0),)),
    )  # fmt: skip


def measured(case: Case, metrics: list[dict], before: dict, after: dict) -> dict[str, np.ndarray]:
    """What the record holds of a run, under the record's names."""
    config = case.model.config
    moved = jax.tree.map(np.subtract, after, before)
    return {
        **{key: np.array([m[key] for m in metrics], np.float64) for key in METRICS},
        **{key: gradient_of(after, config, key.removeprefix("final::")) for key in case.arrays if "final::" in key},
        "param_delta_norms": np.array([
            np.linalg.norm(gradient_of(moved, config, str(name))) for name in case["param_names"]
        ]),
    }  # fmt: skip


def apart_by_rounding(case: Case) -> dict[str, np.ndarray]:
    """How far correct fp32 runs may be from the exact one: the farthest of fp64 runs whose weights are as wrong as
    fp32 rounds them, relative to the exact values (of arrays: to their largest).

    An update of Adam's first steps has the sign of its gradient, however small that is, so that rounding grows from
    step to step: 1e-6 of the loss in the first, 2e-5 in the fourth, 1e-4 of the gradient's norm. Two fp32 runs, ours
    and the recorded one, may part by twice as much.
    """
    with jax.enable_x64(True):
        recipe = recipe_of(case, jnp.float64)
        as_fp64 = lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x  # noqa: E731
        batch = jax.tree.map(lambda x: as_fp64(np.asarray(x)), batch_of(case))
        step = jax.jit(lambda state, batch: train_step(recipe, state, batch))

        def run(seed: int | None) -> dict[str, np.ndarray]:
            rng = np.random.default_rng(seed)

            def weight(x) -> np.ndarray:
                x = np.asarray(x, np.float64)
                return x if seed is None else x * (1 + rng.choice([-1, 1], x.shape) * 2.0**-24)

            before, frozen = split(jax.tree.map(weight, case.model.params), FROZEN)
            state, metrics = State(jnp.int32(0), before, frozen, recipe.transformation.init(before)), []
            for _ in case["lr"]:
                state, of_step = step(state, batch)
                metrics.append(jax.device_get(of_step))
            return measured(case, metrics, before, jax.device_get(state.trained))

        exact, runs = run(None), [run(seed) for seed in range(ROUNDED)]
    scale = {key: np.abs(x) if key in METRICS else np.abs(x).max() for key, x in exact.items()}
    return {key: np.max([np.abs(run[key] - x) for run in runs], axis=0) / scale[key] for key, x in exact.items()}


def groups(case: Case, config, trained: dict) -> Iterator[Check]:
    """Number of parameters that are in the wrong group."""
    table, mask = slots(config), flat(decayed(trained, "official"))
    for key, wanted in (("decay_param_names", True), ("no_decay_param_names", False)):
        found = [mask[table[canonical(str(name))].path] for name in case[key]]
        yield equal(key, found, [wanted] * len(found))


CHECKERS = {"H": check}
