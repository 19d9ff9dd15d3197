"""The conditions of an audit: names to conditions, and what each of them is evidence of."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.conditions import Condition, ConditionError
from lvr_jax.latents.sources import SOURCES

# What feeding a source is evidence of (conditions.EVIDENCE). Donors that were drawn without regard to their answer hold
# other content of the same kind; those that were drawn for another answer argue for it, as an oracle does.
OF_SOURCES = {
    **dict.fromkeys(("donor", "donor_same_label", "donor_same_content", "donor_paper", "permuted", "reversed",
                     "first_repeat", "mean", "step_mean"), cond.CARRIES),
    **dict.fromkeys(("donor_directed", "donor_other_label", "oracle", "oracle_first", "wrong_box", "random_crop",
                     "counterfactual"), cond.LISTENS),
    **dict.fromkeys(("slot_embedding", "start_embedding"), cond.UNFAMILIAR),
    "blank_image": cond.CARRIES, "self": cond.SHAM,
}  # fmt: skip
# Conditions that a config may name, besides noise of given strengths, budgets and single latents.
NAMED: dict[str, Callable[..., cond.Condition]] = {
    "zero": cond.zero, "norm_matched": cond.norm_matched_noise, "unit_normal": cond.unit_normal,
    "distribution_matched": cond.matched_noise, "box_budget": cond.box_budget, "markers_only": cond.markers_only,
    "start_only": cond.start_only, "format_only": cond.format_only,
    "answer_blind_to_latents": cond.answer_blind_to_latents, "latents_blind_to_image": cond.latents_blind_to_image,
    "answer_blind_to_image": cond.answer_blind_to_image,
    **{source: partial(cond.replaced, source, OF_SOURCES[source]) for source in SOURCES},
}  # fmt: skip
NEEDS_BOX = ("oracle", "oracle_first", "wrong_box", "box_budget")

# What replaces the latents' content by other content of the same kind, or hides it: only these can show that the
# content is used. A sham changes nothing, an oracle adds, a donor of another answer or the oracle of a wrong box argues
# for a wrong answer (it can take more than the edge over chance, so that a partial use would look like a whole one),
# and the others change format or the image's own path.
CONTENT = tuple(name for name, make in NAMED.items() if make().evidence == cond.CARRIES)
# What no latent ever was, or a format that the model was not trained on. That answers suffer shows that something has
# to stand there, not that its content is read: the tiny study's LVR loses 39 points to zeros and gains 4 from the mean.
UNFAMILIAR = tuple(name for name, make in NAMED.items() if make().evidence in (cond.UNFAMILIAR, cond.FORMAT))
# What argues for an answer of its own, so that an effect either way shows that the answer listens; what takes latents
# away, so that the reply begins at another place; what only hides them from the answer.
LISTENS = tuple(name for name, make in NAMED.items() if make().evidence == cond.LISTENS)
REMOVED = ("markers_only", "start_only", "format_only")
HIDES = ("answer_blind_to_latents",)
SHAM, DIRECTED, COUNTERFACTUAL = "self", "donor_directed", "counterfactual"
# How the answer's own way to the image is closed: hidden from it by attention (what the question's states have read
# of the image stays), or everything but the latents read from the same question about a blank image.
CONTEXTS: dict[str, Callable[[Condition], Condition]] = {
    "hidden": cond.with_image_hidden, "blank": partial(cond.in_context, context="blank"),
}
# The paper's five conditions by the names of its columns.
PAPER = {"truncate": ("zero",), "noise_0.1": ("noise_0.1",), "noise_0.3": ("noise_0.3",), "noise_1.0": ("noise_1",),
         "swap": ("donor_paper", "donor")}  # fmt: skip


def is_content(name: str) -> bool:
    """Whether a condition's effect on answers is evidence that the content of all latents is used."""
    return name in CONTENT


def is_unfamiliar(name: str) -> bool:
    """Whether a condition feeds what no latent ever was. Noise is, as soon as it is strong."""
    return name in UNFAMILIAR or name.startswith(("noise_", "relative_noise_"))


def named(names: Sequence[str], field: str = "conditions.names") -> list[Condition]:
    """Conditions by name, in order. Raises ConditionError, naming the config's field and what there is."""
    unknown = [name for name in names if name not in NAMED]
    if unknown:
        raise ConditionError(f"{field} has {unknown[0]!r}, expected some of {', '.join(NAMED)}")
    return [NAMED[name]() for name in names]


def check(
    conditions: Sequence[Condition], categories: Iterable[str], contents: Iterable[str], variants: Sequence[str]
) -> None:
    """Refuses conditions that the items cannot serve, before anything runs. Raises ConditionError, one line.

    categories, contents: of each item, its kind of question and what its right answer says; variants: other prompts
    """
    for c in conditions:
        source = SOURCES.get(c.source or "")
        for name in filter(None, (c.context, source and source.of_variant)):
            if name not in variants:
                raise ConditionError(f"condition {c.name!r} needs the prompt {name!r} of each item, these items have "
                                     f"{', '.join(variants)}")  # fmt: skip
        if c.source == DIRECTED:
            answers: dict[str, list[str]] = {}
            for kind, content in zip(categories, contents):
                answers.setdefault(str(kind), []).append(str(content))
            for kind, found in answers.items():
                if len(set(found)) < 2:
                    what = "one item" if len(found) == 1 else f"{len(found)} items with the one answer {found[0]!r}"
                    raise ConditionError(f"condition {c.name!r}: kind of question {kind!r} has {what}, expected two "
                                         "with different answers; leave the condition out, or that kind")  # fmt: skip


def crossed(names: Sequence[str], contexts: Sequence[str]) -> list[Condition]:
    """The clean pass and these conditions with the answer's way to the image closed, in each of the contexts."""
    base = [cond.clean(), *named(names, "conditions.crossed")]
    return [CONTEXTS[context](c) for context in contexts for c in base]


def grid(
    names: Sequence[str], sigmas: Sequence[float], alphas: Sequence[float], budgets: Sequence[int],
    per_latent: Sequence[str], latents: int, contexts: Sequence[str] = (), cross: Sequence[str] = (),
) -> list[Condition]:  # fmt: skip
    """Every condition of an audit, without the clean pass.

    per_latent: these, on one latent of each block at a time; latents: of the longest block; cross: conditions that are
    run again in each of `contexts`
    """
    wanted = [
        *named(names), *(cond.absolute_noise(s) for s in sigmas), *(cond.relative_noise(a) for a in alphas),
        *(cond.budget(n) for n in budgets), *(cond.only(c, j) for c in named(per_latent) for j in range(latents)),
    ]  # fmt: skip
    wanted += crossed(cross, contexts)
    return list({c.name: c for c in wanted}.values())
