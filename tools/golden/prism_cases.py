"""Holds the diagnostics to the reference's: F0 (features), F1 (probe), F2 (bootstrap), F3 (parsers), G (cosine)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from golden.case import Case, Check, equal, relative
from golden.decoding_cases import model_of, plan_of, prefill, trace_of
from golden.training_cases import batch_of, forward
from lvr_jax.evaluation.extraction import first_character, strict_tag
from lvr_jax.latents import objectives, positions
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.prism.measure.alignment import summarise, token_alignment
from lvr_jax.prism.probes.logistic_probe import logistic_probe
from lvr_jax.prism.statistics.correlation_intervals import binomial_bootstrap

# The reference stores features in fp16, whose spacing is 5e-4 of a value.
HALF = 1e-3
STAGES = {"ctx": "context", "tgt": "target"}


def features(case: Case) -> Iterator[Check]:
    """Named positions of the rollout, fed the recorded latents, and the means over the prompt."""
    trace, plan = trace_of(case, "", replay=True), plan_of(case)
    # The golden tokenizer may end the tag in a token of its own or together with the space after it.
    tag = case.tokenizer.encode("<answer>")
    found = positions.masks(vars(trace), plan, [tag])
    ours = {"hidden_a": found["answer"], "hidden_b": found["last_latent"], "hidden_c": found["latents"]}
    for short, stage in STAGES.items():
        if f"hidden_b_{short}" in case:
            ours[f"hidden_b_{short}"] = found[f"last_latent:{stage}"]
            ours[f"hidden_c_{short}"] = found[f"latents:{stage}"]
    yield equal("answer_anchor_iter", positions.step(found["answer"])[0], case["answer_anchor_iter"])
    yield equal("n_lvr_steps", trace.latent[0].sum(), case["n_lvr_steps"])
    for key, mask in ours.items():
        yield relative(key, positions.mean(trace.hidden, mask)[0], case[key], HALF)

    model, (example,) = model_of(case), case.rows()
    _, taps = prefill(model.graph, model.params, case.batch([example]), jnp.arange(1), taps=("hidden",))
    hidden = np.asarray(taps["hidden"])[0]
    spans = {"hidden_a1_visual_mean": example.tokens == model.config.image_token_id,
             "hidden_a1_question_mean": user_text(case, example.tokens)}  # fmt: skip
    for key, span in spans.items():
        yield relative(key, hidden[: len(span)][span].mean(0), case[key], HALF)


def user_text(case: Case, tokens: np.ndarray) -> np.ndarray:
    """[T] bool: text of the user turn, the word "user" included, the images and their markers left out."""
    token = case.tokenizer.id
    opens, closes = (np.flatnonzero(tokens == token(t)) for t in ("<|im_start|>", "<|im_end|>"))
    t = np.arange(len(tokens))
    inside = (t > opens[1]) & (t < closes[closes > opens[1]][0])
    vision = np.isin(tokens, [token(f"<|{t}|>") for t in ("vision_start", "vision_end", "image_pad")])
    return inside & ~vision


def probe(case: Case) -> Iterator[Check]:
    """Compares the logistic probe."""
    ours = logistic_probe(case["X"], case["y"])
    yield equal("k_fold_effective", len(ours.fold_accuracy), case["res_k_fold_effective"])
    if "fold_of_sample" in case:
        yield equal("fold_of_sample", ours.held_by, case["fold_of_sample"])
    # L-BFGS stops early; where exactly moves a little with the version of scikit-learn (1.8.0 recorded).
    tolerance = 1e-3
    if "oof_proba" in case:
        yield relative("oof_proba", ours.probability, case["oof_proba"], tolerance)
    for key, value in {
        "res_accuracy_mean": ours.accuracy, "res_accuracy_std": ours.accuracy_std,
        "res_cross_entropy": ours.cross_entropy, "res_label_entropy_empirical": ours.entropy,
        "res_mi_lower_bound_nats": ours.mi_empirical, "res_mi_lower_bound_uniform": ours.mi_uniform,
    }.items():  # fmt: skip
        yield relative(key, value, case[key], tolerance)


def bootstrap(case: Case) -> Iterator[Check]:
    """Compares bootstrap intervals of correlations."""
    for name, x, y, n, recorded in zip(case["row_names"], case["x"], case["y"], case["n"], case["result"]):
        ours = binomial_bootstrap(x, y, int(n))
        yield relative(f"{name}", [ours.point, ours.low, ours.high], recorded, 1e-12)


def parsers(case: Case) -> Iterator[Check]:
    """Compares answer extraction."""
    choices = dict.fromkeys("ABCD", "")
    texts = [str(text) for text in case["text"]]
    scores = [[float(first_character(text, choices) == letter) for letter in choices] for text in texts]
    yield equal("accuracy_reward_ABCD", scores, case["accuracy_reward_ABCD"])
    # Our strict rule folds case, as the corruption script does right after parsing.
    letters = [strict_tag(text, choices) or "" for text in texts]
    yield equal("parse_letter", letters, np.char.upper(case["parse_letter"].astype(str)))


def alignment(case: Case) -> Iterator[Check]:
    """Compares cosines between latents and targets."""
    model, batch = case.model, batch_of(case)
    out = forward(model.graph, model.params, batch, Objective(stage_weights=(1.0,) * 3), Weights(0.0, 0.0))
    latent = np.asarray(objectives.is_latent(batch))[0]
    stages = np.unique(batch["stage"][0][latent])
    # The last stage with visual targets is the target stage; a context stage comes before it.
    for name, stage in zip(("target", "context"), stages[::-1]):
        here = np.flatnonzero(latent & (batch["stage"][0] == stage))
        tokens = token_alignment(out["predicted"][:, here], out["target"][:, here], np.ones((1, len(here)), bool))
        means = summarise(tokens, np.ones((1, len(here)), bool))
        if name == "target":
            yield relative("mean_cosine_sim", means["mean_cosine"][0], case["mean_cosine_sim"], 1e-4)
        else:
            yield relative("mean_context_cosine_sim", means["mean_cosine"][0], case["mean_context_cosine_sim"], 1e-4)
        for key, value in {
            "n_tokens": len(here), "mean_cosine_sim": means["mean_cosine"][0], "std_cosine_sim": means["std_cosine"][0],
            "mean_mse": means["mean_mse"][0], "std_mse": means["std_mse"][0], "mean_l2_dist": means["mean_distance"][0],
            "mean_hidden_norm": means["mean_predicted_norm"][0], "mean_target_norm": means["mean_target_norm"][0],
            "mean_norm_ratio": means["mean_norm_ratio"][0], "per_token_cosine": tokens.cosine[0],
            "per_token_mse": tokens.mse[0],
        }.items():  # fmt: skip
            if f"{name}_{key}" in case:
                yield relative(f"{name}_{key}", value, np.reshape(case[f"{name}_{key}"], np.shape(value)), 1e-4)


CHECKERS = {"F0": features, "F1": probe, "F2": bootstrap, "F3": parsers, "G": alignment}
