"""Rolls a model out through its own latents and its answer: prefill, then one loop for every system.

`prefill` runs image and question once. `sweep` decodes latents and answer under C conditions at once, which share the
prefix's KV cache; `rollout` is a sweep of one condition; `begin` and `step` are the same loop one step at a time, for
a reply that is read while it is decoded. The loop is a state machine over [C, B] rows: each row is in text or in a
latent block of some stage, and a step feeds it either its last token or a (possibly corrupted) hidden state. Latents
are positions like any other: one M-RoPE step each.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.machine import Machine, Row
from lvr_jax.latents.spec import Array, Plan
from lvr_jax.models.interface import Network
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Cache, Images, Override, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """The prefilled prompt: KV cache and last state of image and question.

    cache: [L, B, T, K, H] and what it needs; hidden: [B, D], the last token's state after the final norm
    token: [B], the last token; next_position: [B]; segment: [B], the row's segment id
    item:  [B] int32, a number that names the item in noise keys
    seen:  [B, V] bool, ids of the prompt (for the repetition penalty), or None
    blocked: [R, R] bool, roles that may not see each other in this checkpoint, whatever the condition, or None
    """

    cache: Cache
    hidden: jax.Array
    token: jax.Array
    next_position: jax.Array
    segment: jax.Array
    item: jax.Array
    seen: jax.Array | None
    blocked: jax.Array | None = None


def prefill(
    graph: nnx.GraphDef,
    params: dict,
    batch: Mapping[str, Any],
    item: jax.Array,
    *,
    compute: Compute = Compute(),  # noqa: B008
    remember_ids: bool = False,
    taps: Collection[str] = (),
    blocked: jax.Array | None = None,
) -> tuple[Prefix, dict]:
    """Runs the prompts of a batch, one a row (data.packing.collate). Returns the prefix and the passes' taps.

    blocked: [R, R] bool, roles that may not see each other (`Tokens`), here and in all that is decoded from the prefix:
    for a checkpoint trained behind a bottleneck (latents.routing).
    Taps: those of the decoder, `hidden` [B, T, D] (after the final norm) and `merged` [B, M, D].
    """
    model: Network = nnx.merge(graph, params)
    merged, out = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]), compute, taps)
    x = model.embed(batch["tokens"], batch["vision_slot"], merged)
    tokens = Tokens(batch["positions"], batch["segment"], batch["role"], blocked)
    real = batch["segment"] > 0
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)                          # [B]
    one = compute.skip_unread and {"hidden", "states"}.isdisjoint(taps)
    read = jnp.arange(real.shape[1]) == last[:, None] if one else None
    hidden, cache, taken = model.decode(x, tokens, compute=compute, taps=taps, keep_cache=True, read=read)
    out |= taken
    if "hidden" in taps:
        out["hidden"] = hidden
    if "merged" in taps:
        out["merged"] = merged
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
        blocked=blocked,
    )
    return prefix, out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """Latent blocks that conditions may feed instead of an item's own.

    source: [n, B, G, Z, D] latent blocks; spread: [D], standard deviation (for SPREAD); budget: [B, G] latents a block
    of each item, for OF_THE_BOX (None: no condition asks for it)
    """

    source: Array
    spread: Array
    budget: Array | None = None


def no_bank(prefix: Prefix, plan: Plan) -> Bank:
    """An empty bank, for conditions that feed no other latents."""
    B, D = prefix.hidden.shape
    return Bank(np.zeros((1, B, len(plan.start), 1, D), np.float32), np.zeros(D, np.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Patch:
    """Activation patching: states of another run, [B, S, 1 + L, D], that replace this one's.

    step: [C, B], -1 for never; layer: [C]
    """

    step: jax.Array
    layer: jax.Array
    states: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """Record of a rollout by step: [C, B, S, ...]. Step s consumes one position (step 0 is the prompt's last one).

    token:    id that was stored at the step (picked, forced, or the slot's), pad id 0 after the end
    latent:   bool, the step's input was a latent;  stage, block, index: of that latent (index within its block)
    live:     bool, the row had not finished before the step
    hidden:   [.., D] state after the final norm, as read by the LM head (a latent head applied)
    unperturbed: [.., D] the vector about to be fed at the step, before the condition (zero at text steps)
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
    unperturbed: jax.Array
    fed: jax.Array
    letters: jax.Array
    margin: jax.Array
    states: jax.Array | None
    attention: jax.Array | None
    steps: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """The loop between two steps.

    step: the next one, scalar; row: the state machine's; own: cache of the decoded positions; trace: fields of `Trace`,
    filled up to `step`
    """

    step: jax.Array
    row: Row
    own: Cache
    trace: dict[str, jax.Array]

    def goes_on(self, steps: int) -> jax.Array:
        """Whether some row has not finished, and the trace has room."""
        return (self.step < steps) & ~jnp.all(self.row.finished)

    def ended(self) -> Trace:
        return Trace(**{"states": None, "attention": None} | self.trace, steps=self.step)


def sweep(
    graph: nnx.GraphDef,
    params: dict,
    prefix: Prefix,
    plan: Plan,
    condition: cond.ConditionArrays,
    bank: Bank,
    *,
    decoding: Decoding,
    steps: int,
    letters: jax.Array | None = None,
    forced: jax.Array | None = None,
    replay: jax.Array | None = None,
    patch: Patch | None = None,
    seed: int | jax.Array = 0,
    position_shift: jax.Array | int = 0,
    compute: Compute = Compute(),  # noqa: B008
    record: Collection[str] = (),
) -> Trace:
    """Rolls out C conditions (a leading axis on every field of `condition`) for the B rows of a prefix.

    steps: S, the static length of the trace, at least max_new_tokens plus the longest overrun of an open block;
    letters: [O] ids whose logits are kept; forced: [S] or [B, S], ids that replace the picked ones where >= 0;
    replay: [B, S, D], vectors fed at latent steps instead of whatever the model and the condition make;
    patch: states that replace the run's own (step 0 is the prefill's and is never patched);
    position_shift: added to every decoded position (0 is right; minus the padding reproduces transformers 4.54 with
    left-padded batches); record: `states`, `attention`.
    """
    start, advance = _loop(
        graph, params, prefix, plan, condition, bank, decoding, steps, letters, forced, replay, patch, seed,
        position_shift, compute, record,
    )  # fmt: skip
    return jax.lax.while_loop(lambda carry: carry.goes_on(steps), advance, start()).ended()


def begin(
    graph: nnx.GraphDef, params: dict, prefix: Prefix, plan: Plan, condition: cond.Condition, bank: Bank, **options: Any
) -> Carry:  # fmt: skip
    """Step 0 of `sweep` with these arguments, which picks the first token from the prompt's last position."""
    start, _ = _loop(graph, params, prefix, plan, condition, bank, **options)
    return start()


def step(
    graph: nnx.GraphDef, params: dict, prefix: Prefix, plan: Plan, condition: cond.Condition, bank: Bank, *,
    carry: Carry, **options: Any,
) -> Carry:  # fmt: skip
    """The next step of a `sweep` that was begun with the same arguments: feeds what was picked and picks once more."""
    _, advance = _loop(graph, params, prefix, plan, condition, bank, **options)
    return advance(carry)


def rollout(graph, params, prefix, plan, condition, bank, **options) -> Trace:
    """One condition: the same as a sweep of it alone, without the C axis (`steps` stays a scalar)."""
    trace = sweep(graph, params, prefix, plan, jax.tree.map(lambda x: x[None], condition), bank, **options)
    return jax.tree.map(lambda x: x[0] if x.ndim else x, trace)


def _loop(
    graph, params, prefix, plan, condition, bank, decoding, steps, letters=None, forced=None, replay=None, patch=None,
    seed=0, position_shift=0, compute=Compute(), record=(),  # noqa: B008
) -> tuple[Callable[[], Carry], Callable[[Carry], Carry]]:  # fmt: skip
    """What makes the loop's first state, and what makes the next one of each; arguments as those of `sweep`."""
    # Some programs hold these as constants, and what is traced indexes no array of NumPy.
    plan, condition, bank = jax.tree.map(jnp.asarray, (plan, condition, bank))
    model: Network = nnx.merge(graph, params)
    C, (B, D) = condition.keep.shape[0], prefix.hidden.shape
    if prefix.blocked is not None:
        condition = dataclasses.replace(condition, blocked=condition.blocked | prefix.blocked)
    machine = Machine(plan, condition, decoding, C, B, bank.budget)
    forced = jnp.broadcast_to(-1 if forced is None else jnp.asarray(forced), (B, steps))
    letters = jnp.zeros(0, jnp.int32) if letters is None else letters
    over_conditions = lambda x: jnp.broadcast_to(x, (C, *x.shape))  # noqa: E731
    seen = None if prefix.seen is None else over_conditions(prefix.seen)
    text = model.config.text

    def consume(s, row, own):
        """Feeds every row its next input: (latent, unperturbed, fed), the output, the cache with it, and taps."""
        latent = row.inside
        unperturbed = jnp.where(latent[..., None], row.hidden, 0)
        fed = machine.corrupt(row, unperturbed, bank, prefix.item, seed)
        if replay is not None:
            fed = jnp.where(latent[..., None], replay[:, s], fed)
        x = jnp.where(latent[..., None], fed.astype(compute.dtype), model.embed(row.token).astype(compute.dtype))
        position = prefix.next_position + s - 1 + position_shift
        segment = jnp.where(row.finished, 0, prefix.segment)
        role = machine.role(row)
        put = None if patch is None else (patch.step == s, patch.layer, patch.states[:, s])
        out = _decode_step(model, x, position, segment, role, prefix.cache, own, s - 1, condition, compute, record, put)
        return (latent, unperturbed, fed), *out

    def record_step(s, row, inputs, hidden, taps, trace):
        """Reads the output, advances the state machine and writes the step into the trace."""
        latent, unperturbed, fed = inputs
        if model.latent_head is not None:
            headed = latent if plan.spec.head_at == "outputs" else machine.feeds_back(row)
            hidden = jnp.where(headed[..., None], model.latent_head(hidden), hidden)
        logits = model.logits(hidden)                                                    # [C, B, V]
        end = None if model.latent_end is None else model.latent_end[...]
        new = machine.advance(row, hidden, logits, forced[:, s], s, end, prefix.item, seed)
        now = {
            "token": new.token, "latent": latent, "stage": row.stage, "block": row.block,
            "index": row.place, "live": ~row.finished, "hidden": hidden, "unperturbed": unperturbed, "fed": fed,
            "letters": logits[..., letters], "margin": _margin(logits), **taps,
        }  # fmt: skip
        put = jax.lax.dynamic_update_index_in_dim
        return new, {k: put(trace[k], now[k].astype(trace[k].dtype), s, 2) for k in trace}

    def start():
        """Step 0 is the prompt's last position, which the prefill has run."""
        row = machine.start(over_conditions(prefix.token), over_conditions(prefix.hidden), seen)
        # Own keys of the decoded positions: conditions on axis 1, so that no step moves the layers' axis.
        keys = jnp.zeros((text.layers, C, B, steps, text.kv_heads, text.head_width), compute.dtype)
        own = Cache(keys, keys, jnp.zeros((C, B, steps), prefix.segment.dtype), jnp.zeros((C, B, steps), jnp.int32))
        trace = _blank_trace(C, B, steps, D, len(letters), text, compute, record)
        nothing = jnp.zeros((C, B), bool), jnp.zeros_like(row.hidden), jnp.zeros_like(row.hidden)
        row, trace = record_step(0, row, nothing, row.hidden, _blank_taps(C, B, text, compute, record), trace)
        return Carry(jnp.int32(1), row, own, trace)

    def advance(carry):
        inputs, hidden, own, taps = consume(carry.step, carry.row, carry.own)
        row, trace = record_step(carry.step, carry.row, inputs, hidden, taps, carry.trace)
        return Carry(carry.step + 1, row, own, trace)

    return start, advance


def _decode_step(model, x, position, segment, role, prefix: Cache, own: Cache, slot, condition, compute, record, put):
    """Decodes one position of every row [C, B]: hidden [C, B, D], the cache that includes it, and taps.

    put: which rows [C, B] take a state, at which layer [C], of states [B, 1 + L, D]; or None
    """
    taps = [t for t in ("states", "attention") if t in record]

    def override(active, layer):
        """[B], scalar -> the override of one condition's pass over one token a row."""
        values = jnp.moveaxis(put[2], 1, 0)[:, :, None]                                   # [1 + L, B, 1, D]
        here = jnp.arange(len(values)) == layer
        return Override(values, here[:, None, None] & active[None, :, None])

    def one(x, segment, role, keys, values, own_segment, own_role, blocked, chosen):
        positions = jnp.broadcast_to(position[:, None, None], (x.shape[0], 3, 1))
        tokens = Tokens(positions, segment[:, None], role[:, None], blocked)
        past = (prefix, Cache(keys, values, own_segment, own_role))
        hidden, cache, out = model.decode(
            x[:, None], tokens, past=past, compute=compute, taps=taps, keep_cache=True,
            override=None if chosen is None else override(*chosen),
        )  # fmt: skip
        if "attention" in out:
            owner = jnp.concatenate([prefix.role, own_role, role[:, None]], axis=1)       # [B, S]
            onto = jax.nn.one_hot(owner, cond.ROLES)
            out["attention"] = jnp.einsum("LBNS,BSR->BLNR", out["attention"][:, :, :, 0], onto)
        if "states" in out:
            out["states"] = jnp.moveaxis(out["states"][:, :, 0], 0, 1)                    # [B, 1 + L, D]
        return hidden[:, 0], cache.k, cache.v, out

    hidden, k, v, out = jax.vmap(one, in_axes=(0, 0, 0, 1, 1, 0, 0, 0, 0), out_axes=(0, 1, 1, 0))(
        x, segment, role, own.k, own.v, own.segment, own.role, condition.blocked, None if put is None else put[:2]
    )
    write = lambda buffer, value, axis: jax.lax.dynamic_update_slice_in_dim(buffer, value, slot, axis)  # noqa: E731
    own = Cache(
        write(own.k, k, 3), write(own.v, v, 3), write(own.segment, segment[..., None], 2),
        write(own.role, role[..., None], 2),
    )  # fmt: skip
    return hidden, own, out


def _margin(logits: jax.Array) -> jax.Array:
    """Gap of the two largest logits. Two maxima: top_k sorts the vocabulary, 40 % of a sweep's time on a CPU."""
    best = jnp.argmax(logits, -1, keepdims=True)
    others = jnp.where(jnp.arange(logits.shape[-1]) == best, -jnp.inf, logits)
    return jnp.max(logits, -1) - jnp.max(others, -1)


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
        "hidden": vector, "unperturbed": vector, "fed": vector, "letters": jnp.zeros((C, B, S, O)),
        "margin": jnp.zeros((C, B, S)), **taps,
    }  # fmt: skip
