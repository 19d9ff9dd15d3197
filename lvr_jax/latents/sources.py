"""Sources of latent blocks: what a condition may feed instead of a latent.

A source makes, for the rows of one batch, whole blocks [B, G, Z, D] (`rollout.Bank`) and says for which rows it has
none. They come from the clean passes of donors or of the item itself, from another prompt of the item (a blank image,
a changed scene), from another checkpoint, or from the image's own tokens. Random choices depend on (seed, item number)
and on the set of items, never on batches or their order. Blocks that are shorter than Z go on with their last latent,
as the released code clips a donor's index.

A source that has nothing for a row (no donor of that answer, no box) gives the row its own clean latents, or zeros, and
flags it: results of flagged rows are no evidence of anything.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lvr_jax.latents.conditions import ConditionError
from lvr_jax.latents.spec import Plan

PAPER_POOL = 64


class SourceError(ValueError):
    """A source that does not exist, or that asks for what the batch does not have."""


@dataclasses.dataclass(frozen=True)
class Clean:
    """The clean pass of all items: item [I] numbers, latents [I, G, Z, D], count [I, G], label [I] (-1: unknown).

    kind, content: [I] kind of question and content of the answer as small numbers (None: of no item known)
    """

    item: np.ndarray
    latents: np.ndarray
    count: np.ndarray
    label: np.ndarray
    kind: np.ndarray | None = None
    content: np.ndarray | None = None
    _drawn: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def order(self) -> np.ndarray:
        """Rows by item number: the order in which random choices count, whatever order the items came in."""
        return np.argsort(self.item, kind="stable")

    @property
    def filled(self) -> np.ndarray:
        """[I, G, Z] bool: the latents that were fed."""
        return np.arange(self.latents.shape[2]) < self.count[..., None]

    def blocks(self, rows: np.ndarray) -> np.ndarray:
        """[B, G, Z, D] with the last latent repeated beyond each block's end."""
        return repeat_last(self.latents[rows], self.count[rows])


@dataclasses.dataclass(frozen=True)
class Request:
    """What a source may use: one batch of B rows, and the clean pass where the source asks for it.

    item:    [B] numbers; rows: [B] places in `clean`
    merged:  () -> [B, M, D] merged vision tokens in window order
    regions: name -> for each row, for each stage, merged slots in raster order (latents.regions), or None
    variant: name of another prompt -> its clean latents [B, G, Z, D], how many [B, G], and which rows have it [B]
    embed:   [V, D] token embeddings
    """

    plan: Plan
    latents: int
    width: int
    seed: int
    item: np.ndarray
    rows: np.ndarray | None = None
    clean: Clean | None = None
    merged: Callable[[], np.ndarray] | None = None
    regions: Mapping[str, Sequence[Sequence[np.ndarray] | None]] = dataclasses.field(default_factory=dict)
    variant: Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
    embed: np.ndarray | None = None

    def blank(self) -> np.ndarray:
        return np.zeros((len(self.item), len(self.plan.spec.stages), self.latents, self.width), np.float32)


@dataclasses.dataclass(frozen=True)
class Source:
    """make(Request) -> (blocks [B, G, Z, D] fp32, missing [B] bool).

    of_clean: made of the clean pass of all items, so that it comes first; of_image: made of merged vision tokens;
    of_variant: the prompt of the item whose clean latents it feeds; donor: (clean, seed) -> [I], whose latents each
    item gets, as rows of the clean pass, -1 for nobody; digest: of what it brings along, so that a sweep of other
    latents is another sweep
    """

    make: Callable[[Request], tuple[np.ndarray, np.ndarray]]
    of_clean: bool = False
    of_image: bool = False
    of_variant: str = ""
    donor: Callable[[Clean, int], np.ndarray] | None = None
    digest: str = ""


def latents_of(trace: Mapping[str, np.ndarray], stages: int, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Each stage's first block of latents as they were fed: ([..., G, Z, D] fp32, how many [..., G]).

    trace: `vars(Trace)` on the host, any leading axes; latents beyond Z are dropped.
    """
    fed, index = np.asarray(trace["fed"]), np.asarray(trace["index"])
    *lead, S, D = fed.shape
    latent = np.asarray(trace["latent"]) & np.asarray(trace["live"])
    blocks, count = np.zeros((*lead, stages, latents, D), np.float32), np.zeros((*lead, stages), np.int32)
    for g in range(stages):
        inside = latent & (np.asarray(trace["stage"]) == g)
        inside &= (np.cumsum(inside & (index == 0), -1) == 1) & (index < latents)
        *at, s = np.nonzero(inside)
        blocks[(*at, g, index[(*at, s)])] = fed[(*at, s)]
        count[..., g] = inside.sum(-1)
    return blocks, count


def repeat_last(latents: np.ndarray, count: np.ndarray) -> np.ndarray:
    """[..., Z, D] with everything from `count` [...] on equal to the latent before it (zeros where count is 0)."""
    Z = latents.shape[-2]
    at = np.minimum(np.arange(Z), np.maximum(count, 1)[..., None] - 1)
    return np.take_along_axis(latents, at[..., None], axis=-2)


def donors(
    clean: Clean, seed: int, *, same_label: bool | None = None, same_content: bool | None = None, itself: bool = False,
    pool: int | None = None,
) -> np.ndarray:  # fmt: skip
    """[I]: whose latents each item gets, as rows of `clean`; -1 where there is nobody.

    A donor has latents in every stage in which the item has some. same_label: only donors of the item's label (True)
    or of another one (False); items without a label have none then. same_content: only donors whose question is of the
    same kind and whose answer has the item's content (True) or another one (False: a directed donor, which argues for
    an answer that could be given). pool: donors are drawn from this many items, themselves drawn once (the paper's 64).
    """
    order = clean.order
    able = clean.count > 0                                                                # [I, G]
    candidates = order[able.any(1)[order]]
    if pool is not None and len(candidates) > pool:
        candidates = np.sort(np.random.default_rng([seed, pool]).permutation(len(candidates))[:pool])
        candidates = order[able.any(1)[order]][candidates]
    chosen = np.full(len(clean.item), -1)
    for row in range(len(chosen)):
        fits = (able[candidates] >= able[row]).all(1)
        if not itself:
            fits &= candidates != row
        if same_label is not None:
            fits &= _agree(clean.label, row, candidates, same_label)
        if same_content is not None:
            fits &= _agree(clean.kind, row, candidates, True) & _agree(clean.content, row, candidates, same_content)
        if fits.any():
            draw = np.random.default_rng([seed, int(clean.item[row])]).integers(fits.sum())
            chosen[row] = candidates[fits][draw]
    return chosen


def _agree(values: np.ndarray | None, row: int, candidates: np.ndarray, same: bool) -> np.ndarray:
    """Candidates whose value equals the row's, or differs from it; unknown values (below 0) never match."""
    if values is None:
        return np.zeros(len(candidates), bool)
    return (values[row] >= 0) & (values[candidates] >= 0) & ((values[candidates] == values[row]) == same)


def donated(**options) -> Source:
    """Latents of a donor: options of `donors`."""

    def donor(clean: Clean, seed: int) -> np.ndarray:
        key = (seed, *sorted(options.items()))
        if key not in clean._drawn:         # every batch asks for its rows of the same draw
            clean._drawn[key] = donors(clean, seed, **options)
        return clean._drawn[key]

    def make(request: Request):
        chosen = donor(request.clean, request.seed)[request.rows]
        missing = chosen < 0
        return request.clean.blocks(np.where(missing, request.rows, chosen)), missing

    return Source(make, of_clean=True, donor=donor)


def of_variant(name: str) -> Source:
    """The latents that the model makes of another prompt of the same item (`Prompts.variants`)."""

    def make(request: Request):
        blocks, count, there = request.variant(name)
        return repeat_last(blocks, count), ~(there & count.any(1))

    return Source(make, of_variant=name)


def recorded(item: np.ndarray, latents: np.ndarray, count: np.ndarray, digest: str = "") -> Source:
    """Blocks that were recorded elsewhere, by item number [I]: latents [I, G, Z, D], count [I, G].

    Of another checkpoint, for example; the number of latents fed stays the reader's, and the last one goes on.
    """
    place = {int(number): row for row, number in enumerate(item)}

    def make(request: Request):
        blocks, missing = request.blank(), np.zeros(len(request.item), bool)
        stages, Z = (min(a, b) for a, b in zip(blocks.shape[1:3], latents.shape[1:3]))
        for b, number in enumerate(request.item):
            row = place.get(int(number))
            missing[b] = row is None or not count[row].any()
            if missing[b]:
                continue
            # A stage that the other checkpoint did not open gets the latents of one that it did.
            last = max(g for g in range(count.shape[1]) if count[row, g])
            for g in range(blocks.shape[1]):
                of = g if g < stages and count[row, g] else last
                long = repeat_last(latents[row, of], count[row, of])[:Z]
                blocks[b, g] = leading(long, blocks.shape[2])
        return blocks, missing

    return Source(make, digest=digest)


def own(rearrange: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Source:
    """The item's own clean latents, the steps of each block rearranged: (steps [n], generator) -> steps [n]."""

    def make(request: Request):
        blocks = request.clean.blocks(request.rows)
        for b, row in enumerate(request.rows):
            random = np.random.default_rng([request.seed, int(request.item[b])])
            for g, n in enumerate(request.clean.count[row]):
                blocks[b, g, :n] = blocks[b, g, rearrange(np.arange(n), random)]
                blocks[b, g, n:] = blocks[b, g, max(n - 1, 0)]
        return blocks, ~request.clean.count[request.rows].any(1)

    return Source(make, of_clean=True)


def computed(function: Callable[[np.ndarray], np.ndarray], name: str, item: Sequence[int], plan: Plan) -> Source:
    """Blocks that a function computes from all items' clean latents: [I, Z, D] fp32 -> [I, Z, D], finite.

    item: [I] numbers in the order that the function sees; Z counts the latents of all stages one after another, each as
    many as its quota. A block that was shorter goes on with its last latent; an item without latents has zeros.
    Raises ConditionError, which names the function, for another shape or for values that are not finite.
    """
    quota = np.maximum(np.asarray(plan.quota), 0).tolist()
    starts = np.concatenate([[0], np.cumsum(quota)])
    key = ("computed", name)

    def whole(clean: Clean) -> np.ndarray:
        """[I, G, Z, D], rows as in `clean`."""
        place = {int(number): row for row, number in enumerate(clean.item)}
        rows = np.array([place[int(number)] for number in item])
        blocks = clean.blocks(rows)
        joined = np.concatenate([blocks[:, g, :n] for g, n in enumerate(quota)], 1)
        returned = function(joined.copy())
        try:
            made = np.asarray(returned)
        except ValueError as error:                 # lists of several lengths
            raise ConditionError(f"condition {name!r}: its function returned no array ({error})") from error
        if made.shape != joined.shape:
            raise ConditionError(f"condition {name!r}: its function returned shape {made.shape}, expected "
                                 f"{joined.shape}: items, latents, width")  # fmt: skip
        with np.errstate(over="ignore"):        # what fp32 cannot hold is infinite, and refused
            finite = made.dtype.kind in "fiubV" and np.isfinite(made.astype(np.float32)).all()
        if not finite:
            raise ConditionError(f"condition {name!r}: its function returned values that are not finite numbers")
        for g, n in enumerate(quota):
            if n:
                part = made[:, starts[g] : starts[g + 1]].astype(np.float32)
                blocks[:, g] = repeat_last(leading_blocks(part, blocks.shape[2]), np.full(len(part), n))
        out = np.zeros_like(blocks)
        out[rows] = blocks
        return out

    def make(request: Request):
        if key not in request.clean._drawn:
            request.clean._drawn[key] = whole(request.clean)
        return request.clean._drawn[key][request.rows], ~request.clean.count[request.rows].any(1)

    return Source(make, of_clean=True)


def leading_blocks(latents: np.ndarray, count: int) -> np.ndarray:
    """[I, n, D] -> [I, count, D]: cut, or filled up with zeros."""
    cut = latents[:, :count]
    return np.pad(cut, [(0, 0), (0, count - cut.shape[1]), (0, 0)])


def shuffle(steps: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random permutation of the steps, never the identity where there are two steps or more."""
    while len(steps) > 1:
        drawn = random.permutation(steps)
        if (drawn != steps).any():
            return drawn
    return steps


def averages(clean: Clean, by_step: bool) -> np.ndarray:
    """[G, Z, D]: the mean of all items' latents of a stage, or of a stage and step (fp64 sums, by item number)."""
    order, filled = clean.order, clean.filled
    weight = filled[order][..., None]
    axes = (0,) if by_step else (0, 2)
    total = (clean.latents[order].astype(np.float64) * weight).sum(axes, keepdims=True)
    count = weight.sum(axes, keepdims=True)
    mean = np.broadcast_to(total / np.maximum(count, 1), (1, *clean.latents.shape[1:]))[0].astype(np.float32)
    reached = np.broadcast_to(count > 0, (1, *clean.latents.shape[1:3], 1))[0, ..., 0].sum(-1)   # [G] steps seen
    return repeat_last(mean, reached)


def spread(clean: Clean) -> np.ndarray:
    """[D]: standard deviation of all latents, dimension by dimension (`conditions.SPREAD`); zeros if there are none."""
    order = clean.order
    every = clean.latents[order][clean.filled[order]].astype(np.float64)
    return (every.std(0) if len(every) else np.zeros(clean.latents.shape[-1])).astype(np.float32)


def averaged(by_step: bool) -> Source:
    """The mean latent of the clean pass, by step of a block or over all of them."""
    def make(request: Request):
        mean = averages(request.clean, by_step)
        return np.repeat(mean[None], len(request.item), 0), np.zeros(len(request.item), bool)

    return Source(make, of_clean=True)


def pool(features: np.ndarray, groups: int) -> np.ndarray:
    """[S, D] in raster order -> [groups, D]: means of contiguous groups, the remainder dropped, as LanteRn does.

    With fewer features than groups, each is repeated as evenly as possible.
    """
    size = len(features) // groups
    if size:
        return features[: size * groups].reshape(groups, size, -1).mean(1)
    return features[np.arange(groups) * len(features) // groups]


def leading(features: np.ndarray, count: int) -> np.ndarray:
    """The first `count` features unpooled: what the first latents were trained to be. The last goes on if too few."""
    return features[np.minimum(np.arange(count), len(features) - 1)]


def seen(region: str, reduce: Callable[[np.ndarray, int], np.ndarray] = pool) -> Source:
    """Vision tokens of a region, reduced to the stage's quota."""

    def make(request: Request):
        if region not in request.regions:
            raise SourceError(f"a condition needs the region {region!r}, the prompts have {sorted(request.regions)}")
        blocks, merged = request.blank(), request.merged()
        quota = np.minimum(np.asarray(request.plan.quota), request.latents)
        missing = np.zeros(len(blocks), bool)
        for b, stages in enumerate(request.regions[region]):
            missing[b] = stages is None or not all(len(slots) for slots in stages)
            if missing[b]:
                continue
            if len(stages) != len(quota):
                raise SourceError(f"region {region!r} has {len(stages)} stages, the system has {len(quota)}")
            for g, slots in enumerate(stages):
                short = reduce(merged[b][np.asarray(slots)].astype(np.float32), max(int(quota[g]), 1))
                blocks[b, g] = repeat_last(leading(short, request.latents), np.int32(len(short)))
        return blocks, missing

    return Source(make, of_image=True)


def embedded(ids: Callable[[Plan], np.ndarray]) -> Source:
    """The embedding of a token of each stage, at every step."""

    def make(request: Request):
        vectors = np.asarray(request.embed[np.asarray(ids(request.plan))], np.float32)   # [G, D]
        return request.blank() + vectors[:, None], np.zeros(len(request.item), bool)

    return Source(make)


SOURCES: dict[str, Source] = {
    "donor": donated(),
    "donor_same_label": donated(same_label=True),
    "donor_other_label": donated(same_label=False),
    "donor_same_content": donated(same_content=True),
    "donor_directed": donated(same_content=False),
    "donor_paper": donated(itself=True, pool=PAPER_POOL),
    "self": own(lambda steps, random: steps),
    "permuted": own(shuffle),
    "reversed": own(lambda steps, random: steps[::-1]),
    "first_repeat": own(lambda steps, random: np.zeros_like(steps)),
    "mean": averaged(by_step=False),
    "step_mean": averaged(by_step=True),
    "oracle": seen("box"),
    "oracle_first": seen("box", leading),
    "wrong_box": seen("wrong_box"),
    "random_crop": seen("random_crop"),
    "slot_embedding": embedded(lambda plan: plan.slot),
    "start_embedding": embedded(lambda plan: plan.start),
    "blank_image": of_variant("blank"),
    "counterfactual": of_variant("counterfactual"),
}
