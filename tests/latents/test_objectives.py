"""What is trained for, and through which activations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from flax import nnx

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import ROLE_ANSWER, ROLE_IMAGE, ROLE_LATENT, ROLE_TEXT, Example
from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.models.layers import Compute
from lvr_jax.models.layout import mrope_positions
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from lvr_jax.models.qwen2_5_vl.rope import mrope_table

CONFIG = Config(
    vision=VisionConfig(depth=1, hidden=16, intermediate=24, heads=2, out_hidden=24, full_attention_layers=(0,)),
    text=TextConfig(
        vocab=32, hidden=24, intermediate=40, layers=3, heads=2, kv_heads=1, head_width=12, mrope_section=(2, 2, 2),
        rope_theta=1e4, tied=True,
    ),
    image_token_id=31, video_token_id=30, vision_start_token_id=29,
)  # fmt: skip
LAYERS, D = CONFIG.text.layers, CONFIG.text.hidden
ONE = Weights(jnp.float32(1), jnp.float32(0))
GEOMETRY = Geometry()


def example(seed: int = 0, stages=((1, 2),), free: int = 0, side: int = 4, pool=()) -> Example:
    """Question, a picture, then blocks of (stage, latents), each with a start and an end marker, and an answer.

    `free` puts that many free tokens of stage 2 between the first block and the rest; `pool`: (latent, merged) pairs.
    """
    rng = np.random.default_rng(seed)
    merged = side * side // 4
    parts = [(ROLE_TEXT, 2, 0, 0), (ROLE_IMAGE, merged, 0, 0), (ROLE_TEXT, 3, 0, 0)]     # role, length, stage, group
    for group, (stage, latents) in enumerate(stages, 1):
        parts += [(ROLE_LATENT, 1, 0, 0), (ROLE_LATENT, latents, stage, group), (ROLE_ANSWER, 1, 0, 0)]
        if free and group == 1:
            parts += [(ROLE_LATENT, 1, 0, 0), (ROLE_LATENT, free, 2, len(stages) + 1), (ROLE_ANSWER, 1, 0, 0)]
    parts.append((ROLE_ANSWER, 3, 0, 0))
    column = lambda i: np.concatenate([np.full(part[1], part[i], np.int32) for part in parts])  # noqa: E731
    role, stage, group = column(0), column(2), column(3)
    slots = np.where(stage > 0, 1, 0)
    vision_slot = np.where(role == ROLE_IMAGE, np.cumsum(role == ROLE_IMAGE) - 1, -1)
    visual = (stage > 0) & ~((stage == 2) & (free > 0))
    vision_slot = np.where(visual, rng.integers(0, merged, len(role)), vision_slot).astype(np.int32)
    tokens = rng.integers(0, 28, len(role)).astype(np.int32)
    positions, _ = mrope_positions(np.where(role == ROLE_IMAGE, -1, tokens), [(1, side, side)], image_token_id=-1)
    first = int(np.argmax(slots))
    return Example(
        id=str(seed), category="", tokens=tokens, positions=positions, vision_slot=vision_slot,
        loss_mask=(role == ROLE_ANSWER) | ((role == ROLE_LATENT) & (stage == 0)), stage=stage, group=group, role=role,
        patches=rng.integers(0, 256, (side * side, 588)).astype(np.uint8), grids=np.array([(1, side, side)], np.int32),
        latent_pool=np.array([(first + i, m) for i, m in pool], np.int32).reshape(-1, 2),
    )  # fmt: skip


def batch_of(*rows, budget: Budget | None = None) -> dict:
    rows = [row if isinstance(row, list) else [row] for row in rows]
    return collate(rows, budget or GEOMETRY.smallest(rows), GEOMETRY)


@functools.cache
def network() -> Qwen2_5_VL:
    with jax.ensure_compile_time_eval():        # the first who asks may be a traced function
        model = Qwen2_5_VL(nnx.Rngs(0), CONFIG)
        # Ten times the usual initialisation: attention that is nearly uniform would let an error pass as rounding.
        state = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, nnx.state(model))
        nnx.update(model, state)
    return model


class Perturbed:
    """The network with zeros added to the input of every block: gradients at them are those at its activations."""

    def __init__(self, model: Qwen2_5_VL, added: jax.Array):
        self.model, self.added = model, added

    def __getattr__(self, name):
        return getattr(self.model, name)

    def decode(self, x, tokens, *, past=(), compute=Compute(), taps=(), keep_cache=False, read=None):  # noqa: B008
        text, c = self.model.text, CONFIG.text
        graph, parameters = nnx.split(text.blocks)
        table = mrope_table(tokens.positions, c.head_width, c.mrope_section, c.rope_theta, at_least_fp32(compute.dtype))
        for layer in range(LAYERS):
            block = nnx.merge(graph, jax.tree.map(lambda w: w[layer], parameters))  # noqa: B023
            x, _, _, _ = block(x + self.added[layer], tokens, table, (), compute, ())
        scale = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + c.norm_eps)
        return x * scale * text.norm[...], None, {}


def forward(model, batch: dict, objective: Objective) -> dict:
    run = lambda b: objectives.forward(model, b, objective, ONE, jax.random.key(0), Compute())  # noqa: E731
    return jax.jit(run)(batch)


@pytest.mark.slow
def test_the_perturbed_network_is_the_network():
    batch = batch_of(example())
    added = jnp.zeros((LAYERS, *batch["tokens"].shape, D))
    out = [forward(model, batch, Objective())["hidden"] for model in (network(), Perturbed(network(), added))]
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [
    Objective(noise=0.1), Objective(distance="cosine", normalisation="sum_of_means", stage_weights=(1.0, 1.0, 2.0)),
    Objective(diversity=0.5), Objective(route="latent_only"), Objective(route="outside_only", attention="bottleneck"),
])  # fmt: skip
def test_what_no_loss_reads_can_be_left_out_of_losses_and_gradients(objective):
    rows = [example(0), example(1, stages=((1, 2), (3, 2)))], [example(2, stages=((1, 3), (3, 1)), free=3, side=8)]
    batch = batch_of(*rows)
    graph, parameters = nnx.split(network())

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(parameters, compute, batch):
        loss = lambda p: objectives.loss(  # noqa: E731
            nnx.merge(graph, p), batch, objective, ONE, objectives.totals(batch), jax.random.key(0), compute
        )
        return jax.value_and_grad(loss, has_aux=True)(parameters)

    plain, skipping = (gradient(parameters, Compute(skip_unread=skip), batch) for skip in (False, True))
    for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(skipping)):
        # fp32 sums in another order, relative to the array's largest.
        np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max()), err_msg=jax.tree_util.keystr(path))


@functools.cache
def activation_gradients(route: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Gradients of the auxiliary loss and of cross-entropy at the input of every block [L, B, T, D]."""
    batch = batch_of([example(0), example(1)], [example(2, stages=((1, 3),))])
    objective, total = Objective(route=route), objectives.totals(batch)

    def part(added, key):
        model = Perturbed(network(), added)
        return objectives.loss(model, batch, objective, ONE, total, jax.random.key(0), Compute())[1][key]

    zeros = jnp.zeros((LAYERS, *batch["tokens"].shape, D))
    jacobian = jax.jacrev(lambda a: [part(a, key) for key in ("loss_lvr", "loss_ce")])
    gradient = jax.jit(jacobian, compiler_options=quick.FUSED)
    found = [np.asarray(g) for g in gradient(zeros)]
    return *found, batch


def norms(gradient: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[L, selected positions]"""
    return np.linalg.norm(gradient, axis=-1)[:, where]


@pytest.mark.slow
@pytest.mark.parametrize("route, flows", [("latent_only", True), ("outside_only", False)])
def test_the_routed_gradient_is_exactly_zero_on_the_other_side_at_every_layer(route, flows):
    lvr, _, batch = activation_gradients(route)
    latent = batch["role"] == ROLE_LATENT
    open_, closed = (latent, ~latent) if flows else (~latent, latent)
    assert (norms(lvr, closed) == 0).all()
    assert (norms(lvr, open_ & (batch["segment"] > 0)) > 0).any(axis=1).all(), "nothing flows at some layer"


@pytest.mark.slow
def test_all_latent_positions_that_predict_carry_the_latent_only_gradient():
    """The start marker and every latent but a block's last one predict; into the last block they do so alone."""
    lvr, _, batch = activation_gradients("latent_only")
    predicts = np.roll(np.asarray(objectives.is_latent(batch)), -1, axis=1)
    assert (norms(lvr, predicts) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("route", ["latent_only", "outside_only"])
def test_the_gradient_of_cross_entropy_is_untouched_by_the_route(route):
    np.testing.assert_array_equal(activation_gradients(route)[1], activation_gradients("both")[1])


@functools.cache
def parameter_gradients(route: str, head: str = "none") -> tuple[float, dict[str, np.ndarray]]:
    """The auxiliary loss and its gradient at every parameter, by path."""
    graph, state = nnx.split(network() if head == "none" else with_head(head))
    batch = batch_of([example(0), example(1)])
    objective, total = Objective(route=route), objectives.totals(batch)

    def part(state):
        model = nnx.merge(graph, state)
        return objectives.loss(model, batch, objective, ONE, total, jax.random.key(0), Compute())[1]["loss_lvr"]

    value, found = jax.jit(jax.value_and_grad(part))(state)
    return float(value), {path: np.asarray(x) for path, x in flat(nnx.to_pure_dict(found)).items()}


def with_head(kind: str) -> Qwen2_5_VL:
    return Qwen2_5_VL(nnx.Rngs(0), dataclasses.replace(CONFIG, latent_head=kind))


@pytest.mark.slow
@pytest.mark.parametrize("route", ["latent_only", "outside_only"])
def test_a_route_by_position_cuts_what_enters_the_last_block_and_nothing_that_it_does_with_it(route):
    """Its queries, output projection and MLP, at the positions that predict, take the gradient of `both`: two routes
    are two ways into the same matrices."""
    both, routed = parameter_gradients("both")[1], parameter_gradients(route)[1]
    last = lambda found, name: found[f"text/blocks/{name}"][-1]  # noqa: E731
    for name in ("q", "out", "mlp/gate", "mlp/up", "mlp/down"):
        np.testing.assert_allclose(last(routed, name), last(both, name), rtol=1e-4, atol=1e-7, err_msg=name)
        assert np.abs(last(routed, name)).max() > 0
        below = [found[f"text/blocks/{name}"][0] for found in (routed, both)]
        assert np.abs(below[0] - below[1]).max() > 1e-3 * np.abs(below[1]).max(), name
    for name in ("k", "v"):
        apart = np.abs(last(routed, name) - last(both, name)).max()
        assert apart > 1e-3 * np.abs(last(both, name)).max(), name


@pytest.mark.slow
def test_the_head_only_loss_is_the_same_and_reaches_the_latent_head_and_nothing_else():
    (value, routed), (usual, both) = (parameter_gradients(route, "simple") for route in ("head_only", "both"))
    assert value == pytest.approx(usual, rel=1e-6)
    for path, gradient in routed.items():
        if path.startswith("latent_head/"):
            np.testing.assert_allclose(gradient, both[path], rtol=1e-4, atol=1e-9, err_msg=path)
            assert np.abs(gradient).max() > 0, path
        else:
            assert not gradient.any(), path
    assert any(x.any() for path, x in both.items() if path.startswith("text/"))


@pytest.mark.slow
def test_at_the_last_block_both_routes_add_up_to_the_unrouted_gradient_and_below_mixed_paths_are_missing():
    """A path of gradient from the loss steps, block by block, from a position to itself or an earlier one. A route
    keeps the paths that stay on its side at every block. Into the last block a path is one step, on one side or the
    other, so the two gradients add up; below, paths that change sides belong to neither."""
    both, latent, outside = (activation_gradients(route)[0] for route in ("both", "latent_only", "outside_only"))
    scale = np.abs(both).max(axis=(1, 2, 3))
    gap = np.abs(latent + outside - both).max(axis=(1, 2, 3)) / scale
    assert gap[-1] < 1e-5
    assert (gap[:-1] > 1e-3).all()


def test_behind_the_bottleneck_the_answer_depends_on_the_image_through_latents_alone():
    """Gradient of the answer's loss at the image's embeddings: there, through the whole decoder; and exactly zero once
    nothing flows back through latent positions."""
    batch = batch_of(example(0), example(1))
    answers = batch | {"loss_mask": batch["loss_mask"] & (batch["role"] == ROLE_ANSWER)}
    # The first answer token is predicted by the last latent itself, which does see the image.
    answers["loss_mask"] &= np.roll(batch["role"], 1, axis=1) == ROLE_ANSWER
    model, total = network(), objectives.totals(answers)

    def answer_loss(added, attention, latents_flow):
        flow = jnp.asarray(batch["role"] != ROLE_LATENT) if not latents_flow else None
        moved = Moved(model, added)
        objective = Objective(attention=attention)
        out = objectives.forward(moved, answers, objective, ONE, jax.random.key(0), Compute(), flow=flow)
        logits = model.text.logits(objectives.before(answers, out["hidden"]))
        losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, answers["tokens"][..., None], -1)[..., 0]
        return jnp.sum(losses * answers["loss_mask"]) / total.tokens

    zeros = jnp.zeros((*batch["tokens"].shape, D))
    image = batch["role"] == ROLE_IMAGE
    gradient = jax.jit(jax.grad(answer_loss), static_argnums=(1, 2))
    at_image = lambda *how: np.abs(np.asarray(gradient(zeros, *how)))[image].max()  # noqa: E731
    assert at_image("bottleneck", True) > 1e-6
    assert at_image("bottleneck", False) == 0
    assert at_image("full", False) > 1e-6, "without the bottleneck the same cut must not be enough"


class Moved(Perturbed):
    """The network with zeros added to the embeddings, before they enter the decoder."""

    def decode(self, x, tokens, **options):
        return self.model.decode(x + self.added, tokens, **options)


def reconstruct(batch, objective, predicted, target, packs=None) -> float:
    total = objectives.totals(batch)
    total = total if packs is None else dataclasses.replace(total, packs=jnp.float32(packs))
    return float(objectives.reconstruction(batch, objective, jnp.asarray(predicted), jnp.asarray(target), total)[0])


@pytest.fixture
def vectors():
    batch = batch_of([example(0, stages=((1, 2), (1, 3)))], [example(1, stages=((1, 1),))])
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, *batch["tokens"].shape, D)).astype(np.float32)
    return batch, predicted, target


@pytest.mark.parametrize("distance", ["mse", "mae", "cosine"])
def test_per_token_is_one_mean_over_all_latents_of_the_batch(vectors, distance):
    batch, predicted, target = vectors
    at = np.asarray(objectives.is_latent(batch))
    z, v = predicted[at].astype(np.float64), target[at].astype(np.float64)
    expected = {
        "mse": np.mean((z - v) ** 2), "mae": np.mean(np.abs(z - v)),
        "cosine": np.mean(1 - (z * v).sum(-1) / np.linalg.norm(z, axis=-1) / np.linalg.norm(v, axis=-1)),
    }[distance]  # fmt: skip
    assert at.sum() == 6
    np.testing.assert_allclose(reconstruct(batch, Objective(distance=distance), predicted, target), expected, rtol=1e-5)


def test_sum_of_means_adds_every_box_and_stage_and_averages_over_packs(vectors):
    batch, predicted, target = vectors
    at, group = np.asarray(objectives.is_latent(batch)), batch["group"]
    error = np.mean((predicted - target).astype(np.float64) ** 2, -1)
    means = [error[row][at[row] & (group[row] == g)].mean() for row, g in ((0, 1), (0, 2), (1, 1))]
    objective = Objective(normalisation="sum_of_means")
    np.testing.assert_allclose(reconstruct(batch, objective, predicted, target), sum(means) / 2, rtol=1e-5)
    np.testing.assert_allclose(reconstruct(batch, objective, predicted, target, packs=1), sum(means), rtol=1e-5)


def test_a_stage_weight_scales_the_latents_of_its_stage_alone():
    batch = batch_of(example(0, stages=((1, 2), (3, 3))))
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, *batch["tokens"].shape, D)).astype(np.float32)
    value = lambda *w: reconstruct(batch, Objective(stage_weights=w), predicted, target)  # noqa: E731
    np.testing.assert_allclose(value(1.0, 0.0, 0.0) + value(0.0, 0.0, 1.0), value(1.0, 1.0, 1.0), rtol=1e-6)
    assert value(1.0, 0.0, 0.0) > 0 and value(0.0, 1.0, 0.0) == 0


def test_diversity_is_the_mean_squared_off_diagonal_cosine_of_a_block():
    """The zeroed diagonal counts in the mean, as in the released code."""
    stages = ((1, 2), (3, 2))
    batch = batch_of(example(0, stages, free=4, side=8), example(1, stages, side=8))
    hidden = np.random.default_rng(0).normal(size=(*batch["tokens"].shape, D)).astype(np.float32)
    at = np.asarray(objectives.is_free(batch))
    assert at.sum() == 4
    h = hidden[at].astype(np.float64)
    h /= np.linalg.norm(h, axis=-1, keepdims=True)
    gram = h @ h.T
    np.fill_diagonal(gram, 0)
    total = objectives.totals(batch)
    assert float(total.free_blocks) == 1
    np.testing.assert_allclose(objectives.diversity(batch, jnp.asarray(hidden), total), np.mean(gram**2), rtol=1e-5)
    # Equal states are as far from diverse as can be: all but the diagonal of 4 x 4 ones.
    np.testing.assert_allclose(objectives.diversity(batch, jnp.ones_like(hidden), total), 12 / 16, rtol=1e-5)


def test_a_pooled_latent_is_fed_and_taught_the_mean_of_its_tokens():
    pool = ((0, 0), (0, 1), (0, 3), (1, 2))
    batch = batch_of(example(0, stages=((1, 2),), pool=pool))
    merged = np.random.default_rng(0).normal(size=(1, batch["window_segment"].size // 4, D)).astype(np.float32)
    targets = np.asarray(objectives.latent_targets(batch, jnp.asarray(merged)))
    at = np.flatnonzero(np.asarray(objectives.is_latent(batch))[0])
    slots = {t: batch["pool"][0, batch["pool"][0, :, 0] == t, 1] for t in at}
    assert sorted(len(s) for s in slots.values()) == [1, 3]
    for t, own in slots.items():
        np.testing.assert_allclose(targets[0, t], merged[0, own].mean(0), rtol=1e-5, atol=1e-6)


def _targets(kind: str, key: int = 0) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    # The second row's picture leaves a window half empty: its slots must never be drawn.
    batch = batch_of(example(0, side=8), example(1, side=4))
    merged = np.random.default_rng(0).normal(size=(2, batch["window_segment"].shape[1] * 16, D)).astype(np.float32)
    clean = objectives.latent_targets(batch, jnp.asarray(merged))
    keys = objectives.row_keys(batch, jax.random.key(key))
    return batch, merged, np.asarray(clean), np.asarray(objectives.TARGETS[kind](keys, clean, batch, merged))


def test_a_shuffled_target_is_another_token_of_the_rows_own_images():
    moved = 0
    for key in range(4):
        batch, merged, clean, targets = _targets("shuffled", key)
        at, filled = np.asarray(objectives.is_latent(batch)), batch["window_segment"].reshape(2, -1, 4)[..., 0] > 0
        assert filled.sum(1).tolist() == [16, 4]
        for row in range(2):
            own = merged[row][filled[row]]
            for z, v in zip(targets[row][at[row]], clean[row][at[row]]):
                assert (own == z).all(-1).any()
                moved += not np.array_equal(z, v)
    assert moved > 8        # of 16 latents, 1 / 4 or less stay by chance


def test_a_wrong_box_is_the_same_region_half_of_its_own_image_further_on_whatever_is_drawn():
    """In a picture of one window, half the height below or above. Two pictures of a row stay apart."""
    pool = ((0, 0), (0, 1), (0, 3))
    batch = batch_of([example(0, side=8, stages=((1, 3),)), example(1, side=4, pool=pool)])
    merged = np.random.default_rng(0).normal(size=(1, batch["window_segment"].shape[1] * 16, D)).astype(np.float32)
    image = batch["window_segment"].reshape(-1, 4)[:, 0]
    assert [(image == n).sum() for n in (1, 2)] == [16, 4]
    further = {}
    for n in (1, 2):
        slots = np.flatnonzero(image == n)
        further |= dict(zip(slots.tolist(), np.roll(slots, -len(slots) // 2).tolist()))
    assert all(further[further[slot]] == slot != other for slot, other in further.items())
    clean = objectives.latent_targets(batch, jnp.asarray(merged))
    wrong = [np.asarray(objectives.TARGETS["wrong_box"](objectives.row_keys(batch, jax.random.key(n)), clean, batch,
                                                        merged)) for n in (0, 1)]  # fmt: skip
    np.testing.assert_array_equal(*wrong)
    pooled = {int(t): batch["pool"][0, batch["pool"][0, :, 0] == t, 1] for t in batch["pool"][0, :, 0] if t >= 0}
    latents = np.flatnonzero(np.asarray(objectives.is_latent(batch))[0])
    assert len(latents) == 5 and len(pooled) == 1
    for t in latents:
        region = [further[int(slot)] for slot in pooled.get(int(t), [batch["vision_slot"][0, t]])]
        np.testing.assert_allclose(wrong[0][0, t], merged[0, region].mean(0), rtol=1e-5, atol=1e-6)


def test_a_random_target_has_the_norm_of_its_own_and_nothing_else_of_it():
    batch, _, clean, targets = _targets("random")
    at = np.asarray(objectives.is_latent(batch))
    np.testing.assert_allclose(np.linalg.norm(targets[at], axis=-1), np.linalg.norm(clean[at], axis=-1), rtol=1e-5)
    assert np.abs(np.asarray(objectives.cosine(targets[at], clean[at]))).max() < 0.8
    assert not np.array_equal(targets, _targets("random", 1)[3])


def test_what_is_drawn_for_a_row_depends_on_its_number_and_not_on_its_batch():
    batch = batch_of(example(0), example(1))
    keys = objectives.row_keys(batch, jax.random.key(3))
    alone = {k: x[1:] for k, x in batch.items()} | {"row": np.array([1])}
    own = objectives.row_keys(alone, jax.random.key(3))
    shape = (2, *batch["tokens"].shape[1:], D)
    noise = objectives.noise_like(batch, keys, shape)
    np.testing.assert_array_equal(noise[1:], objectives.noise_like(alone, own, (1, *shape[1:])))
    assert not np.array_equal(noise[0], noise[1])


def test_noise_is_added_to_what_is_fed_and_the_target_stays_clean():
    batch = batch_of(example(0, stages=((1, 4),)))
    clean, noisy = forward(network(), batch, Objective()), forward(network(), batch, Objective(noise=0.3))
    at = np.asarray(objectives.is_latent(batch))
    np.testing.assert_array_equal(clean["target"], noisy["target"])
    difference = np.asarray(noisy["fed"] - clean["fed"])[at]
    assert 0.2 < difference.std() < 0.4 and np.abs(difference.mean()) < 0.1


def test_a_wrong_choice_is_named_with_what_there_is():
    with pytest.raises(ValueError, match="objective.route is 'sideways', expected one of"):
        Objective(route="sideways")
