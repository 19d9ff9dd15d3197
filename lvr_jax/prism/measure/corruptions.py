"""Which conditions does an audit run, and what is each of them evidence of? Names to conditions, and their roles."""

from collections.abc import Sequence
from functools import partial

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.conditions import ConditionError, Named
from lvr_jax.latents.sources import SOURCES

# Conditions that a config may name, besides noise of given strengths, budgets and single latents.
NAMED = {
    "zero": cond.zero, "norm_matched": cond.norm_matched_noise, "unit_normal": cond.unit_normal,
    "distribution_matched": cond.matched_noise, "markers_only": cond.markers_only, "format_only": cond.format_only,
    "answer_blind_to_latents": cond.answer_blind_to_latents, "latents_blind_to_image": cond.latents_blind_to_image,
    "answer_blind_to_image": cond.answer_blind_to_image,
    **{source: partial(cond.replaced, source) for source in SOURCES},
}  # fmt: skip
NEEDS_BOX = ("oracle", "oracle_first", "wrong_box")

# What replaces the latents' content by other content of the same kind, or hides it: only these can show that the
# content is used. A sham changes nothing, an oracle adds, a donor of another label or the oracle of a wrong box argues
# for a wrong answer (it can take more than the edge over chance, so that a partial use would look like a whole one),
# and the others change format or the image's own path.
CONTENT = (
    "distribution_matched", "donor", "donor_same_label", "donor_paper", "permuted", "reversed", "first_repeat", "mean",
    "step_mean", "answer_blind_to_latents",
)  # fmt: skip
# What no latent ever was, or a format that the model was not trained on. That answers suffer shows that something has
# to stand there, not that its content is read: the tiny study's LVR loses 39 points to zeros and gains 4 from the mean.
UNFAMILIAR = (
    "zero", "norm_matched", "unit_normal", "slot_embedding", "start_embedding", "markers_only", "format_only",
)  # fmt: skip
SHAM = "self"
# The paper's five conditions by the names of its columns.
PAPER = {"truncate": ("zero",), "noise_0.1": ("noise_0.1",), "noise_0.3": ("noise_0.3",), "noise_1.0": ("noise_1",),
         "swap": ("donor_paper", "donor")}  # fmt: skip


def is_content(name: str) -> bool:
    """Whether a condition's effect on answers is evidence that the content of all latents is used."""
    return name in CONTENT


def is_unfamiliar(name: str) -> bool:
    """Whether a condition feeds what no latent ever was. Noise is, as soon as it is strong."""
    return name in UNFAMILIAR or name.startswith(("noise_", "relative_noise_"))


def named(names: Sequence[str]) -> list[Named]:
    """Conditions by name, in order. Raises ConditionError, naming what there is."""
    unknown = [name for name in names if name not in NAMED]
    if unknown:
        raise ConditionError(f"conditions.names has {unknown[0]!r}, expected some of {', '.join(NAMED)}")
    return [NAMED[name]() for name in names]


def grid(
    names: Sequence[str], sigmas: Sequence[float], alphas: Sequence[float], budgets: Sequence[int],
    per_latent: Sequence[str], latents: int,
) -> list[Named]:  # fmt: skip
    """Every condition of an audit, without the clean pass; per_latent: these, on one latent of each block at a time.

    latents: of the longest block
    """
    wanted = [
        *named(names), *(cond.absolute_noise(s) for s in sigmas), *(cond.relative_noise(a) for a in alphas),
        *(cond.budget(n) for n in budgets), *(cond.only(c, j) for c in named(per_latent) for j in range(latents)),
    ]  # fmt: skip
    return list({c.name: c for c in wanted}.values())
