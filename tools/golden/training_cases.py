"""Compares training with the reference's: cases B (losses, latents, gradients) and C2 (with a latent head).

States and logits come at the end of the chain from pixels, hence their tolerance (see golden.model_cases).
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from golden.case import Case, Check, equal, relative
from golden.decoding_cases import model_of
from golden.input_cases import sequences
from lvr_jax.data.packing import Batch
from lvr_jax.data.sample import ROLE_LATENT, Example
from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.models.families import slots
from lvr_jax.models.layers import Compute
from lvr_jax.models.weight_table import canonical

LOSS, GRADIENT, STATE = 1e-5, 1e-4, 5e-5
IGNORED = -100
# The golden tokenizer's ids: stage start markers in the order of the sequence, and the two kinds of slot.
STARTS = {394: 1, 398: 1, 400: 2, 402: -1}     # the target stage is the last one
LVR, FREE = 395, 404


def annotate(case: Case, examples: list[Example], labels: np.ndarray) -> list[Example]:
    """The rows with their latents: slots take the recorded vision tokens in order, groups and stages as marked."""
    sources = iter(case["lvr_tokens_flat"])
    last_stage = 1 + int((case["input_ids"] == 402).any()) + int((case["input_ids"] == 400).any())
    mask = case["attention_mask"].reshape(len(examples), -1).astype(bool)
    out = []
    for example, wanted in zip(examples, [row[real] for row, real in zip(np.atleast_2d(labels), mask)]):
        stage, group = np.zeros((2, len(example.tokens)), np.int32)
        slot, role = example.vision_slot.copy(), example.role.copy()
        now = blocks = 0
        for t, token in enumerate(example.tokens):
            if token in STARTS:
                now, blocks = STARTS[token] % (last_stage + 1), blocks + 1
                role[t] = ROLE_LATENT
            elif token in (LVR, FREE):
                stage[t], group[t], role[t] = now, blocks, ROLE_LATENT
                if token == LVR:
                    slot[t] = next(sources)
        targets = (wanted != IGNORED) & ~np.isin(example.tokens, (LVR, FREE))
        out.append(
            dataclasses.replace(example, stage=stage, group=group, vision_slot=slot, role=role, loss_mask=targets)
        )
    return out


def batch_of(case: Case) -> Batch:
    """The case's batch, with its recorded noise."""
    batch = case.batch(annotate(case, case.rows(), case["labels"]))
    if "noise_eta_unscaled" in case:
        noise = np.zeros((*batch["tokens"].shape, case["noise_eta_unscaled"].shape[-1]), np.float32)
        noise[np.asarray(objectives.is_latent(batch))] = case["noise_eta_unscaled"]
        batch["noise"] = noise
    return batch


def objective_of(case: Case) -> Objective:
    """The objective that the case was recorded with."""
    staged = case.meta.get("plvr_mode", False)
    return Objective(
        distance=case.meta["loss_lvr_fct"],
        normalisation="sum_of_means" if staged else "per_token",
        stage_weights=(1.0, 1.0, 1.0),
        diversity=float(case["lambda_div"]) if "loss_diversity" in case else 0.0,
        noise=case.meta["nlvr_noise_scale"] if case.meta["nlvr_mode"] else 0.0,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def losses_and_gradients(graph, params, batch, objective: Objective, weights: Weights):
    """The recorded batch is one pack, whatever its rows."""
    total = dataclasses.replace(objectives.totals(batch), packs=jnp.float32(1))

    def loss(trained):
        model = nnx.merge(graph, params | trained)
        return objectives.loss(model, batch, objective, weights, total, jax.random.key(0), Compute())

    trained = {k: v for k, v in params.items() if k != "vision"}
    return jax.value_and_grad(loss, has_aux=True)(trained)


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(graph, params, batch, objective: Objective, weights: Weights):
    """One training pass, with logits."""
    model = nnx.merge(graph, params)
    out = objectives.forward(model, batch, objective, weights, jax.random.key(0), Compute())
    # Where the next position is a latent, the reference's LM head reads the state that a latent head has made.
    before = lambda x: jnp.pad(x[:, 1:], [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    read = jnp.where(before(objectives.is_latent(batch))[..., None], before(out["predicted"]), out["hidden"])
    return out | {"logits": model.text.logits(read)}


def gradient_of(gradients: dict, config, name: str) -> np.ndarray:
    """The gradient of a reference parameter, in its own shape; a tied head's is the embedding's."""
    slot = slots(config)[canonical(name)]
    leaf = gradients
    for part in slot.path.split("/"):
        leaf = leaf[part]
    return slot.to_hf(np.asarray(leaf if slot.layer is None else leaf[slot.layer]))


def check(case: Case) -> Iterator[Check]:
    """Compares losses, latents and gradients."""
    if "records_json" in case:
        yield from sequences(case)
    model, batch, objective = model_of(case), batch_of(case), objective_of(case)
    weights = Weights(jnp.float32(case["lambda_lvr"]), jnp.float32(0))
    latent = np.asarray(objectives.is_latent(batch))
    out = forward(model.graph, model.params, batch, objective, weights)
    hidden = np.asarray(out["hidden"])
    if latent.any():
        yield relative("latent_input_embeds", np.asarray(out["fed"])[latent], case["latent_input_embeds"], STATE)
        yield relative("target_latents", np.asarray(out["target"])[latent], case["target_latents"], STATE)
        yield relative("pred_latents", np.asarray(out["predicted"])[latent], case["pred_latents"], STATE)
    if "last_hidden_state" in case:
        real = case["attention_mask"].astype(bool)
        yield relative("last_hidden_state", hidden[:, : real.shape[1]][real], case["last_hidden_state"][real], STATE)
    if "logits_at_positions" in case:
        b, t = case["logit_positions"].T
        yield relative("logits_at_positions", out["logits"][b, t], case["logits_at_positions"], STATE)
    if "free_positions" in case:
        b, t = case["free_positions"].T
        yield equal("free_positions", np.argwhere(np.asarray(objectives.is_free(batch))), case["free_positions"])
        yield relative("free_hidden", hidden[b, t], case["free_hidden"], STATE)
    (_, parts), gradients = losses_and_gradients(model.graph, model.params, batch, objective, weights)
    for key, value in parts.items():
        if key not in case:
            continue
        if np.isnan(case[key]):  # the reference averages over no latents at all; we say zero and train on
            yield Check(f"{key} (NaN in the reference) is finite", 0.0 if np.isfinite(value) else np.inf, 0)
        else:
            yield relative(key, value, case[key], LOSS)
    if "grad_global_norm" not in case or np.isnan(case["grad_global_norm"]):
        return
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients)))
    yield relative("grad_global_norm", norm, case["grad_global_norm"], GRADIENT)
    yield from gradient_checks(case, model.config, gradients)


def gradient_checks(case: Case, config, gradients: dict) -> Iterator[Check]:
    """Compares gradient norms and recorded gradients."""
    norms = [np.linalg.norm(gradient_of(gradients, config, str(name))) for name in case["grad_param_names"]]
    yield relative("grad_param_norms", norms, case["grad_param_norms"], GRADIENT)
    for key in case.arrays:
        if key.startswith("grad::"):
            yield relative(key, gradient_of(gradients, config, key.removeprefix("grad::")), case[key], GRADIENT)
    embedding = gradient_of(gradients, config, "model.embed_tokens.weight")
    yield relative("grad_embed_row_norms", np.linalg.norm(embedding, axis=1), case["grad_embed_row_norms"], GRADIENT)
    yield relative("grad_embed_rows", embedding[case["grad_embed_rows_ids"]], case["grad_embed_rows"], GRADIENT)
    if "grad_lm_head_row_norms" in case:
        head = gradient_of(gradients, config, "lm_head.weight")
        yield relative("grad_lm_head_row_norms", np.linalg.norm(head, axis=1), case["grad_lm_head_row_norms"], GRADIENT)


CHECKERS = {kind: check for kind in ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "C2")}
