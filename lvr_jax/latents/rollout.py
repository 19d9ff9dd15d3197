"""What does the model say, and what does it feed itself on the way? Prefill, then one loop for every system.

`prefill` runs image and question once. `sweep` rolls latents and answer out under C conditions at a time, all of them
reading the same prefix cache; `rollout` is a sweep of one. The loop is a state machine over [C, B] rows: each row is
in text or in a latent block of some stage, and a step feeds it either its last token or a (possibly corrupted) hidden
state. Latents are positions like any other: one M-RoPE step each.
"""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.decoding import Decoding, penalise, pick
from lvr_jax.latents.spec import Plan
from lvr_jax.models.qwen2_5_vl.layers import Compute
from lvr_jax.models.qwen2_5_vl.model import Images, Qwen2_5_VL
from lvr_jax.models.qwen2_5_vl.text import Cache, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Image and question, read once.

    cache: [L, B, T, K, H] and what it needs; hidden: [B, D], the last token's state after the final norm
    token: [B], the last token; next_position: [B]; segment: [B], the row's segment id
    item:  [B] int32, a number that names the item in noise keys
    seen:  [B, V] bool, ids of the prompt (for the repetition penalty), or None
    """

    cache: Cache
    hidden: jax.Array
    token: jax.Array
    next_position: jax.Array
    segment: jax.Array
    item: jax.Array
    seen: jax.Array | None


def prefill(
    graph: nnx.GraphDef,
    params: dict,
    batch: dict,
    item: jax.Array,
    *,
    compute: Compute = Compute(),  # noqa: B008
    remember_ids: bool = False,
    taps: Collection[str] = (),
) -> tuple[Prefix, dict]:
    """Runs the prompts of a batch, one a row (data.packing.collate). Returns the prefix and the passes' taps.

    Taps: those of the decoder, `hidden` [B, T, D] (after the final norm) and `merged` [B, M, D].
    """
    model: Qwen2_5_VL = nnx.merge(graph, params)
    merged, out = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]), compute, taps)
    x = model.embed(batch["tokens"], batch["vision_slot"], merged)
    tokens = Tokens(batch["positions"], batch["segment"], role=batch["role"])
    hidden, cache, taken = model.decode(x, tokens, compute=compute, taps=taps, keep_cache=True)
    out |= taken
    if "hidden" in taps:
        out["hidden"] = hidden
    if "merged" in taps:
        out["merged"] = merged
    real = batch["segment"] > 0
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)                          # [B]
    at_last = lambda x: jnp.take_along_axis(x, last[:, None], axis=1)[:, 0]  # noqa: E731
    seen = None
    if remember_ids:
        B, V = last.shape[0], model.config.text.vocab
        seen = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], batch["tokens"]].max(real)
    prefix = Prefix(
        cache=cache,
        hidden=jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0],
        token=at_last(batch["tokens"]),
        # M-RoPE: text goes on after the largest position on any axis.
        next_position=jnp.max(jnp.where(real[:, None], batch["positions"], -1), axis=(1, 2)) + 1,
        segment=at_last(batch["segment"]),
        item=item,
        seen=seen,
    )
    return prefix, out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """Latent blocks that conditions may feed: source [n, B, G, Z, D], spread [D] (standard deviation, for SPREAD)."""

    source: jax.Array
    spread: jax.Array


def no_bank(prefix: Prefix, plan: Plan) -> Bank:
    """For conditions that mix nothing in."""
    B, D = prefix.hidden.shape
    return Bank(jnp.zeros((1, B, len(plan.start), 1, D)), jnp.zeros(D))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """What happened, step by step: [C, B, S, ...]. Step s consumes one position (step 0 is the prompt's last one).

    token:    id that was stored at the step (picked, forced, or the slot's), pad id 0 after the end
    latent:   bool, the step's input was a latent;  stage, block, index: of that latent (index within its block)
    live:     bool, the row had not finished before the step
    hidden:   [.., D] state after the final norm, as read by the LM head (a latent head applied)
    made:     [.., D] the vector about to be fed at the step, before the condition (zero at text steps)
    fed:      [.., D] the same after it
    letters:  [.., O] fp32 logits of the option letters' ids;  margin: [..] gap of the two largest logits
    states:   [.., 1 + L, D] on request; attention: [.., L, N, R] shares of attention by role of the key, on request
    steps:    scalar, how many steps were run
    """

    token: jax.Array
    latent: jax.Array
    stage: jax.Array
    block: jax.Array
    index: jax.Array
    live: jax.Array
    hidden: jax.Array
    made: jax.Array
    fed: jax.Array
    letters: jax.Array
    margin: jax.Array
    states: jax.Array | None
    attention: jax.Array | None
    steps: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Row:
    """The state machine's state, [C, B] unless said. mode: 0 text, else 1 + stage of the open block."""

    mode: jax.Array
    remaining: jax.Array
    index: jax.Array        # of the next latent in its block
    block: jax.Array        # blocks opened so far
    queue: jax.Array        # next forced token of `closing`, past the end when there is none
    closing: jax.Array      # stage whose closing tokens are in the queue
    finished: jax.Array
    token: jax.Array        # last stored id
    hidden: jax.Array       # [C, B, D]
    seen: jax.Array | None  # [C, B, V]


def sweep(
    graph: nnx.GraphDef,
    params: dict,
    prefix: Prefix,
    plan: Plan,
    condition: cond.Condition,
    bank: Bank,
    *,
    decoding: Decoding,
    steps: int,
    letters: jax.Array | None = None,
    forced: jax.Array | None = None,
    replay: jax.Array | None = None,
    seed: int | jax.Array = 0,
    position_shift: jax.Array | int = 0,
    compute: Compute = Compute(),  # noqa: B008
    record: Collection[str] = (),
) -> Trace:
    """Rolls out C conditions (a leading axis on every field of `condition`) for the B rows of a prefix.

    steps: S, the static length of the trace, at least max_new_tokens plus the longest overrun of an open block;
    letters: [O] ids whose logits are kept; forced: [S] or [B, S], ids that replace the picked ones where >= 0;
    replay: [B, S, D], vectors fed at latent steps instead of whatever the model and the condition make;
    position_shift: added to every decoded position (0 is right; minus the padding reproduces transformers 4.54 with
    left-padded batches); record: `states`, `attention`.
    """
    model: Qwen2_5_VL = nnx.merge(graph, params)
    C, (B, D) = condition.keep.shape[0], prefix.hidden.shape
    machine = _Machine(plan, condition, decoding, C, B)
    forced = jnp.broadcast_to(-1 if forced is None else jnp.asarray(forced), (B, steps))
    letters = jnp.zeros(0, jnp.int32) if letters is None else letters
    wide = lambda x: jnp.broadcast_to(x, (C, *x.shape))  # noqa: E731
    row = machine.start(wide(prefix.token), wide(prefix.hidden), None if prefix.seen is None else wide(prefix.seen))
    text = model.config.text
    # Own keys of the decoded positions: conditions on axis 1, so that no step moves the layers' axis.
    keys = jnp.zeros((text.layers, C, B, steps, text.kv_heads, text.head_width), compute.dtype)
    own = Cache(keys, keys, jnp.zeros((C, B, steps), prefix.segment.dtype), jnp.zeros((C, B, steps), jnp.int32))
    trace = _blank_trace(C, B, steps, D, len(letters), text, compute, record)

    def consume(s, row, own):
        """Feeds every row its next input: (latent, made, fed), the output, the cache with it, and taps."""
        latent = row.mode > 0
        made = jnp.where(latent[..., None], row.hidden, 0)
        fed = machine.corrupt(row, made, bank, prefix.item, seed)
        if replay is not None:
            fed = jnp.where(latent[..., None], replay[:, s], fed)
        x = jnp.where(latent[..., None], fed.astype(compute.dtype), model.embed(row.token).astype(compute.dtype))
        position = prefix.next_position + s - 1 + position_shift
        segment = jnp.where(row.finished, 0, prefix.segment)
        role = machine.role(row, latent)
        out = _decode_step(model, x, position, segment, role, prefix.cache, own, s - 1, condition, compute, record)
        return (latent, made, fed), *out

    def settle(s, row, inputs, hidden, taps, trace):
        """Reads the output, moves the machine on, and writes the step down."""
        latent, made, fed = inputs
        if hasattr(model, "latent_head"):
            headed = latent if plan.spec.head_at == "outputs" else machine.feeds_back(row, latent)
            hidden = jnp.where(headed[..., None], model.latent_head(hidden), hidden)
        logits = model.text.logits(hidden)                                               # [C, B, V]
        end = model.latent_end[...] if hasattr(model, "latent_end") else None
        new = machine.advance(row, latent, hidden, logits, forced[:, s], s, end, prefix.item, seed)
        top = jax.lax.top_k(logits, 2)[0]
        now = {
            "token": new.token, "latent": latent, "stage": jnp.where(latent, row.mode - 1, 0), "block": row.block,
            "index": row.index, "live": ~row.finished, "hidden": hidden, "made": made, "fed": fed,
            "letters": logits[..., letters], "margin": top[..., 0] - top[..., 1], **taps,
        }  # fmt: skip
        put = jax.lax.dynamic_update_index_in_dim
        return new, {k: put(trace[k], now[k].astype(trace[k].dtype), s, 2) for k in trace}

    def body(carry):
        s, row, own, trace = carry
        inputs, hidden, own, taps = consume(s, row, own)
        row, trace = settle(s, row, inputs, hidden, taps, trace)
        return s + 1, row, own, trace

    # Step 0 is the prompt's last position, which the prefill has run.
    nothing = jnp.zeros((C, B), bool), jnp.zeros_like(row.hidden), jnp.zeros_like(row.hidden)
    row, trace = settle(0, row, nothing, row.hidden, _blank_taps(C, B, text, compute, record), trace)
    going = lambda carry: (carry[0] < steps) & ~jnp.all(carry[1].finished)  # noqa: E731
    ran, *_, trace = jax.lax.while_loop(going, body, (jnp.int32(1), row, own, trace))
    return Trace(**{"states": None, "attention": None} | trace, steps=ran)


def rollout(graph, params, prefix, plan, condition, bank, **options) -> Trace:
    """One condition: the same as a sweep of it alone, without the C axis (`steps` stays a scalar)."""
    trace = sweep(graph, params, prefix, plan, jax.tree.map(lambda x: x[None], condition), bank, **options)
    return jax.tree.map(lambda x: x[0] if x.ndim else x, trace)


def _decode_step(model, x, position, segment, role, prefix: Cache, own: Cache, slot, condition, compute, record):
    """One position of every row [C, B]: hidden [C, B, D], the cache with it, and taps."""
    taps = [t for t in ("states", "attention") if t in record]

    def one(x, segment, role, keys, values, own_segment, own_role, blocked):
        positions = jnp.broadcast_to(position[:, None, None], (x.shape[0], 3, 1))
        tokens = Tokens(positions, segment[:, None], role[:, None], blocked)
        past = (prefix, Cache(keys, values, own_segment, own_role))
        hidden, cache, out = model.decode(x[:, None], tokens, past=past, compute=compute, taps=taps, keep_cache=True)
        if "attention" in out:
            owner = jnp.concatenate([prefix.role, own_role, role[:, None]], axis=1)       # [B, S]
            onto = jax.nn.one_hot(owner, cond.ROLES)
            out["attention"] = jnp.einsum("LBNS,BSR->BLNR", out["attention"][:, :, :, 0], onto)
        if "states" in out:
            out["states"] = jnp.moveaxis(out["states"][:, :, 0], 0, 1)                    # [B, 1 + L, D]
        return hidden[:, 0], cache.k, cache.v, out

    hidden, k, v, out = jax.vmap(one, in_axes=(0, 0, 0, 1, 1, 0, 0, 0), out_axes=(0, 1, 1, 0))(
        x, segment, role, own.k, own.v, own.segment, own.role, condition.blocked
    )
    write = lambda buffer, value, axis: jax.lax.dynamic_update_slice_in_dim(buffer, value, slot, axis)  # noqa: E731
    own = Cache(
        write(own.k, k, 3), write(own.v, v, 3), write(own.segment, segment[..., None], 2),
        write(own.role, role[..., None], 2),
    )  # fmt: skip
    return hidden, own, out


@dataclasses.dataclass(frozen=True)
class _Machine:
    """The decoding state machine; `_Row` in, `_Row` out. All arrays [C, B] unless said."""

    plan: Plan
    condition: cond.Condition
    decoding: Decoding
    C: int
    B: int

    def start(self, token, hidden, seen) -> _Row:
        zero = jnp.zeros((self.C, self.B), jnp.int32)
        return _Row(
            mode=zero, remaining=zero, index=zero, block=zero, queue=zero + self._closing_tokens(), closing=zero,
            finished=zero.astype(bool), token=token, hidden=hidden, seen=seen,
        )  # fmt: skip

    def _closing_tokens(self) -> int:
        """Length of the queue: what the system forces, or an end marker where a condition asks for it."""
        return max(len(self.plan.after), 1)

    def _starts(self, token) -> jax.Array:
        """Does a token open a block, and of which stage? 0 for none, else 1 + stage."""
        hits = (token[..., None] == self.plan.start) & self.condition.opens[:, None]      # [C, B, G]
        return jnp.where(hits.any(-1), 1 + jnp.argmax(hits, -1), 0).astype(jnp.int32)

    def role(self, row: _Row, latent) -> jax.Array:
        """What the position about to be consumed is to attention: a start marker and its slots are latent."""
        return jnp.where(latent | (self._starts(row.token) > 0), cond.LATENT, cond.ANSWER).astype(jnp.int32)

    def feeds_back(self, row: _Row, latent) -> jax.Array:
        """Will this step's output be fed back? (Where a head is applied in training.)"""
        return jnp.where(latent, row.remaining > 1, self._starts(row.token) > 0)

    def corrupt(self, row: _Row, z, bank: Bank, item, seed) -> jax.Array:
        """Every row's vector [C, B, D] under its condition."""

        def one(condition, z, b, item, mode, block, index):
            stage = jnp.maximum(mode - 1, 0)
            last = bank.source.shape[3] - 1
            source = bank.source[condition.source, b, stage, jnp.minimum(index, last)]
            key = cond.noise_key(seed, item, condition.seed_as, block, index)
            step = jnp.minimum(index, condition.steps.shape[0] - 1)
            return jnp.where(mode > 0, cond.apply(condition, z, source, bank.spread, key, step), z)

        over_items = jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0, 0))
        over_conditions = jax.vmap(over_items, in_axes=(0, 0, None, None, 0, 0, 0))
        return over_conditions(self.condition, z, jnp.arange(self.B), item, row.mode, row.block, row.index)

    def advance(self, row: _Row, latent, hidden, logits, forced, s, end_embedding, item, seed) -> _Row:
        plan, spec, decoding = self.plan, self.plan.spec, self.decoding
        picked = self._pick(row, logits, s, item, seed)
        picked = jnp.where((s == 0) & (plan.first >= 0), plan.first, picked)
        waiting = row.queue < self._closing_tokens()
        picked = jnp.where(waiting, self._closing_token(row.closing, row.queue), picked)
        picked = jnp.where(forced >= 0, forced, picked)

        # Open? A marker opens its block when it is fed, or, where it is overwritten, as soon as it is picked.
        opened = jnp.where(latent, 0, self._starts(picked if spec.overwrite_start else row.token))
        stage = jnp.maximum(jnp.where(latent, row.mode, opened) - 1, 0)
        quota = jnp.where(self.condition.budget >= 0, self.condition.budget, plan.quota)  # [C, G]
        quota = jnp.take_along_axis(quota, stage, axis=1)
        if spec.first_block_only:
            quota = jnp.where(row.block > 0, jnp.iinfo(jnp.int32).max, quota)
        remaining = jnp.where(latent, row.remaining - 1, jnp.where(opened > 0, quota, 0))

        # Close? By quota, by the end marker, or by the distance to the end embedding.
        leave = remaining <= 0
        if spec.exit_on_end:
            leave |= latent & (picked == plan.end[stage])
        if spec.end_distance is not None and end_embedding is not None:
            difference = row.hidden.astype(jnp.float32) - end_embedding.astype(jnp.float32)
            leave |= latent & (jnp.mean(difference**2, -1) < spec.end_distance)
        inside = latent | (opened > 0)
        mode = jnp.where(inside & ~leave, stage + 1, 0)
        closed = inside & leave
        queue = jnp.where(waiting, row.queue + 1, row.queue)
        first, none = self._queue_start(), self._closing_tokens()
        queue = jnp.where(closed, jnp.broadcast_to(first[:, None], queue.shape), queue)
        # A marker that is overwritten was itself picked at this step: what closes its block comes one step later.
        now = closed & (queue < none) & (latent | (not spec.overwrite_start))
        picked = jnp.where(now & (forced < 0), self._closing_token(stage, queue), picked)
        queue = jnp.where(now, queue + 1, queue)
        if spec.store_slot:
            picked = jnp.where(mode > 0, plan.slot[stage], picked)

        stop = jnp.isin(picked, jnp.array(decoding.stop, jnp.int32)) | (s + 1 >= decoding.max_new_tokens)
        if spec.stop_inside:
            mode = jnp.where(jnp.isin(picked, jnp.array(decoding.stop, jnp.int32)), 0, mode)
        token = jnp.where(row.finished, 0, picked)
        c, b = jnp.meshgrid(jnp.arange(self.C), jnp.arange(self.B), indexing="ij")
        return _Row(
            mode=jnp.where(row.finished, 0, mode),
            remaining=remaining,
            index=jnp.where(latent, row.index + 1, 0),
            block=row.block + (opened > 0),
            queue=queue,
            closing=jnp.where(closed, stage, row.closing),
            finished=row.finished | ((mode == 0) & stop),
            token=token,
            hidden=hidden,
            seen=None if row.seen is None else row.seen.at[c, b, token].max(~row.finished),
        )

    def _pick(self, row: _Row, logits, s, item, seed):
        if self.decoding.repetition_penalty != 1:
            logits = penalise(logits, row.seen, self.decoding.repetition_penalty)
        banned = jnp.zeros((self.C, logits.shape[-1]), bool)
        banned = banned.at[:, self.plan.start].max(self.condition.banned)
        logits = jnp.where(banned[:, None], -jnp.inf, logits)
        key = lambda item: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item), s)  # noqa: E731
        keys = jax.vmap(key)(item)
        over_items = jax.vmap(lambda row, k: pick(row, k, self.decoding))
        return jax.vmap(over_items, in_axes=(0, None))(logits, keys)

    def _queue_start(self) -> jax.Array:
        """[C]: where the queue of closing tokens begins; past its end if nothing is forced."""
        if len(self.plan.after):
            return jnp.zeros(self.C, jnp.int32)
        return jnp.where(self.condition.close, 0, self._closing_tokens()).astype(jnp.int32)

    def _closing_token(self, stage, queue) -> jax.Array:
        if len(self.plan.after):
            return self.plan.after[jnp.minimum(queue, len(self.plan.after) - 1)]
        return self.plan.end[stage]


def _blank_taps(C, B, text, compute, record) -> dict:
    taps = {}
    if "states" in record:
        taps["states"] = jnp.zeros((C, B, text.layers + 1, text.hidden), compute.dtype)
    if "attention" in record:
        taps["attention"] = jnp.zeros((C, B, text.layers, text.heads, cond.ROLES), jnp.float32)
    return taps


def _blank_trace(C, B, S, D, O, text, compute, record) -> dict:  # noqa: E741
    number, vector = jnp.zeros((C, B, S), jnp.int32), jnp.zeros((C, B, S, D), compute.dtype)
    flag = number.astype(bool)
    taps = {k: jnp.zeros((C, B, S, *x.shape[2:]), x.dtype) for k, x in _blank_taps(1, 1, text, compute, record).items()}
    return {
        "token": number, "latent": flag, "stage": number, "block": number, "index": number, "live": flag,
        "hidden": vector, "made": vector, "fed": vector, "letters": jnp.zeros((C, B, S, O)),
        "margin": jnp.zeros((C, B, S)), **taps,
    }  # fmt: skip
