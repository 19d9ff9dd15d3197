"""The state machine of latent decoding: what a row is doing and does next, for [C, B] rows at once.

Between two steps a row is either in text, and will be fed its last token, or inside one or more latent blocks, and
will be fed its last hidden state. A block opens at its start marker, counts down its quota, and closes. Blocks of
different stages run independently, as in the released P-LVR code: a target marker that happens to be picked inside a
context block opens a target block beside it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.decoding import Decoding, penalise, pick
from lvr_jax.latents.spec import Plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """The machine's state, [C, B] unless said.

    remaining: [C, B, G] latents that the open block of each stage still feeds, 0 if none is open
    index:     [C, B, G] of the next latent in its block
    block:     blocks opened so far
    queue:     next closing token to be forced, past the last one when there is none; closing: of which stage
    token:     last stored id; hidden: [C, B, D]; seen: [C, B, V] ids so far, or None
    """

    remaining: jax.Array
    index: jax.Array
    block: jax.Array
    queue: jax.Array
    closing: jax.Array
    finished: jax.Array
    token: jax.Array
    hidden: jax.Array
    seen: jax.Array | None

    @property
    def inside(self) -> jax.Array:
        """Whether the next input is a latent."""
        return (self.remaining > 0).any(-1)

    @property
    def stage(self) -> jax.Array:
        """Stage of the next latent: the last stage that is open; 0 in text."""
        return last(self.remaining > 0)

    @property
    def place(self) -> jax.Array:
        """Index of the next latent in its block."""
        return _of(self.index, self.stage)


def last(flags: jax.Array) -> jax.Array:
    """[..., G] bool -> index of the last True, 0 if there is none."""
    G = flags.shape[-1]
    return jnp.where(flags.any(-1), G - 1 - jnp.argmax(flags[..., ::-1], -1), 0).astype(jnp.int32)


def _of(values: jax.Array, stage: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, stage[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class Machine:
    """The rules: `Row` in, `Row` out. own_budget: [B, G] latents a block of each item (conditions.OF_THE_BOX)."""

    plan: Plan
    condition: cond.ConditionArrays
    decoding: Decoding
    C: int
    B: int
    own_budget: jax.Array | None = None

    def start(self, token: jax.Array, hidden: jax.Array, seen: jax.Array | None) -> Row:
        zero = jnp.zeros((self.C, self.B), jnp.int32)
        stages = jnp.zeros((self.C, self.B, len(self.plan.start)), jnp.int32)
        return Row(
            remaining=stages, index=stages, block=zero, queue=zero + self._closing_tokens, closing=zero,
            finished=zero.astype(bool), token=token, hidden=hidden, seen=seen,
        )  # fmt: skip

    def _markers(self, token: jax.Array) -> jax.Array:
        """[C, B, G] bool: the token is a stage's start marker and may open a block."""
        return (token[..., None] == self.plan.start) & self.condition.opens[:, None]

    def role(self, row: Row) -> jax.Array:
        """Attention role of the next position: a start marker and its slots count as latent."""
        latent = row.inside | self._markers(row.token).any(-1)
        return jnp.where(latent, cond.LATENT, cond.ANSWER).astype(jnp.int32)

    def feeds_back(self, row: Row) -> jax.Array:
        """Whether the output of the position about to be consumed is fed back."""
        opened = self._markers(row.token) & (row.remaining == 0) & (self._quota(row) > 0)
        return ((row.remaining > 1) | opened).any(-1)

    def corrupt(self, row: Row, z: jax.Array, bank, item: jax.Array, seed) -> jax.Array:
        """The vectors that are fed instead of z [C, B, D] under each row's condition."""

        def one(condition, z, source, item, inside, stage, block, index):
            source = source[condition.source, stage, jnp.minimum(index, source.shape[2] - 1)]          # [D]
            key = cond.noise_key(seed, item, condition.noise_id, block, index)
            step = jnp.minimum(index, condition.steps.shape[0] - 1)
            return jnp.where(inside, cond.apply(condition, z, source, bank.spread, key, step), z)

        # The bank is mapped over items, not indexed by them: rows stay on the device that holds them.
        over_items = jax.vmap(one, in_axes=(None, 0, 1, 0, 0, 0, 0, 0))
        over_conditions = jax.vmap(over_items, in_axes=(0, 0, None, None, 0, 0, 0, 0))
        return over_conditions(self.condition, z, bank.source, item, row.inside, row.stage, row.block, row.place)

    def _quota(self, row: Row) -> jax.Array:
        """Latents [C, B, G] that a block would feed if it opened at this step."""
        quota = jnp.where(self.condition.budget >= 0, self.condition.budget, self.plan.quota)[:, None]
        if self.own_budget is not None:
            own = (self.condition.budget == cond.OF_THE_BOX)[:, None]
            quota = jnp.where(own, jnp.minimum(self.own_budget, self.plan.quota), quota)
        if self.plan.spec.first_block_only:
            return jnp.where(row.block[..., None] > 0, jnp.iinfo(jnp.int32).max, quota)
        return jnp.broadcast_to(quota, row.remaining.shape)

    def advance(self, row: Row, hidden, logits, forced, s, end_embedding, item, seed) -> Row:
        """After step s, whose output is `hidden` [C, B, D] with fp32 `logits`; forced [B]: id to store if >= 0."""
        plan, spec = self.plan, self.plan.spec
        picked = self._pick(row, logits, s, item, seed)
        # A forced first token that is a banned start marker is not forced.
        first = jnp.where((self.condition.banned & (plan.start == plan.first)).any(-1), -1, plan.first)[:, None]
        picked = jnp.where((s == 0) & (first >= 0), first, picked)
        waiting = row.queue < self._closing_tokens
        picked = jnp.where(waiting, self._closing_token(row.closing, row.queue), picked)
        picked = jnp.where(forced >= 0, forced, picked)

        # Open? A marker opens its block when it is fed, or, where it is overwritten, as soon as it is picked.
        was_open = row.remaining > 0                                                     # [C, B, G]
        opened = self._markers(picked if spec.overwrite_start else row.token) & ~was_open
        remaining = jnp.where(was_open, row.remaining - 1, jnp.where(opened, self._quota(row), 0))

        # Close? By quota, by the end marker, or by the distance of the vector just fed to the end embedding.
        if spec.exit_on_end:
            remaining = jnp.where(was_open & (picked[..., None] == plan.end), 0, remaining)
        if spec.end_distance is not None and end_embedding is not None:
            difference = row.hidden.astype(jnp.float32) - end_embedding.astype(jnp.float32)
            near = jnp.mean(difference**2, -1) < spec.end_distance
            remaining = jnp.where(was_open & near[..., None], 0, remaining)
        inside = (remaining > 0).any(-1)
        closed = (was_open | opened).any(-1) & ~inside
        stage = last(was_open | opened)
        queue = jnp.where(waiting, row.queue + 1, row.queue)
        queue = jnp.where(closed, self._queue_start()[:, None], queue)
        # A marker that is overwritten was itself picked at this step: what closes its block comes one step later.
        now = closed & (queue < self._closing_tokens) & (row.inside | (not spec.overwrite_start))
        picked = jnp.where(now & (forced < 0), self._closing_token(stage, queue), picked)
        if spec.store_slot:
            picked = jnp.where(inside, plan.slot[last(remaining > 0)], picked)

        ends = jnp.isin(picked, jnp.array(self.decoding.stop, jnp.int32))
        if spec.stop_inside:
            remaining = jnp.where(ends[..., None], 0, remaining)
            inside &= ~ends
        token = jnp.where(row.finished, 0, picked)
        c, b = jnp.meshgrid(jnp.arange(self.C), jnp.arange(self.B), indexing="ij")
        return Row(
            remaining=jnp.where(row.finished[..., None], 0, remaining),
            index=jnp.where(was_open, row.index + 1, 0),
            block=row.block + opened.sum(-1),
            queue=jnp.where(now, queue + 1, queue),
            closing=jnp.where(closed, stage, row.closing),
            # An open block is finished first, whatever was picked and however long it takes.
            finished=row.finished | (~inside & (ends | (s + 1 >= self.decoding.max_new_tokens))),
            token=token,
            hidden=hidden,
            seen=None if row.seen is None else row.seen.at[c, b, token].max(~row.finished),
        )

    def _pick(self, row: Row, logits, s, item, seed) -> jax.Array:
        if self.decoding.repetition_penalty != 1:
            logits = penalise(logits, row.seen, self.decoding.repetition_penalty)
        banned = jnp.zeros((self.C, logits.shape[-1]), bool)
        banned = banned.at[:, self.plan.start].max(self.condition.banned)
        logits = jnp.where(banned[:, None], -jnp.inf, logits)
        keys = jax.vmap(lambda item: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item), s))(item)
        over_items = jax.vmap(lambda row, key: pick(row, key, self.decoding))
        return jax.vmap(over_items, in_axes=(0, None))(logits, keys)

    @property
    def _closing_tokens(self) -> int:
        """Length of the queue: what the system forces, or an end marker where a condition asks for it."""
        return max(len(self.plan.after), 1)

    def _queue_start(self) -> jax.Array:
        """[C]: where the queue begins for a block that closes now; past its end if nothing is forced."""
        forced = self.condition.close >= 0 if len(self.plan.after) else self.condition.close > 0
        return jnp.where(forced, 0, self._closing_tokens).astype(jnp.int32)

    def _closing_token(self, stage: jax.Array, queue: jax.Array) -> jax.Array:
        if len(self.plan.after):
            return self.plan.after[jnp.minimum(queue, len(self.plan.after) - 1)]
        return self.plan.end[stage]
