"""Compares the latent loop with the reference's, step by step: cases C1, C3 (heads), D, E (corruption).

Two runs a case. *Replayed*: the recorded latents are fed, so that rounding does not run through the loop; every state
must agree to 1e-4 of its scale. *Free*: the model feeds itself; tokens must agree wherever the recorded gap of the two
largest logits is at least 0.02 (after a legitimate tie has gone the other way nothing is compared), and latents to
5e-2: over twenty latents and sixty tokens the loop amplifies rounding a thousandfold.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from golden.case import Case, Check, Model, equal, relative
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.rollout import Bank, Trace, no_bank
from lvr_jax.latents.spec import SYSTEMS, Plan, plan
from lvr_jax.models.families import abstract_model, slots
from lvr_jax.models.qwen2_5_vl.params import LATENT_HEAD

REPLAYED, FREE, TIE = 1e-4, 5e-2, 0.02

# Cases of one shape share a program.
prefill = jax.jit(rollout.prefill, static_argnums=0, static_argnames="taps")
sweep = jax.jit(rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps"))


def with_head(case: Case) -> Model:
    """The case's checkpoint with the latent head of case C1 put in."""
    own = case.model
    name = str(case.meta.get("head_weights", case.name)).split("_head_")[1].split("_")[0]
    config = dataclasses.replace(own.config, latent_head=name)
    table, head = slots(config), {}
    for hf, *_ in LATENT_HEAD[name]:
        slot = table[hf]
        head[slot.path.split("/")[1]] = slot.from_hf(case["head::" + hf.removeprefix("lvr_head.")])
    return Model(config, abstract_model(config)[0], own.params | {"latent_head": head})


def model_of(case: Case) -> Model:
    """The case's model, with the recorded latent head for cases C."""
    return with_head(case) if case.kind.startswith("C") else case.model


def head_module(case: Case) -> Iterator[Check]:
    """Compares the latent head alone."""
    yield relative("y", model_of(case).bound.latent_head(case["x"]), case["y"], 2e-5)


def plan_of(case: Case) -> Plan:
    """The plan of the case's latent loop."""
    staged = "s" in case.meta or "plvr" in case.name
    spec = SYSTEMS["p_lvr" if staged else "lvr"]
    ids = {t: case.tokenizer.id(t) for t in (*spec.added_tokens,)}
    return plan(spec, ids, case.meta.get("s", case.meta.get("K")))


def _named(case: Case, the_plan: Plan, prefix: str) -> tuple[cond.Condition, list[np.ndarray] | None]:
    """The condition of a recorded run, and its source: one [n, D] array a stage."""
    D = case.model.config.text.hidden
    stages = ("single",) if len(the_plan.start) == 1 else ("ctx", "tgt")
    quota = np.asarray(the_plan.quota)
    if prefix in ("", "clean_"):
        return cond.clean(), None
    if prefix == "truncate_":
        return cond.zero(), None
    if prefix.startswith("noise_"):
        eta = case[f"{prefix}noise_eta_unscaled"].reshape(-1, D)
        blocks = np.split(eta, np.cumsum(quota)[:-1])
        sigma = float(prefix.split("_")[1])
        return cond.Condition(prefix, mix=sigma, source="recorded"), blocks
    donor = int(case["donor_record_idx"].item())
    found = [f"donor_records_{s}_fp16" for s in stages]
    return cond.replaced("recorded"), [case[k][donor].astype(np.float32) for k in found]


def _bank(blocks: list[np.ndarray] | None, prefix, the_plan: Plan) -> Bank:
    if blocks is None:
        return no_bank(prefix, the_plan)
    B, D = prefix.hidden.shape
    Z = max(len(b) for b in blocks)
    # Beyond a donor's last latent the last one is repeated, as in the reference.
    filled = np.stack([np.concatenate([b, np.repeat(b[-1:], Z - len(b), 0)]) for b in blocks])
    return Bank(jnp.asarray(np.broadcast_to(filled, (1, B, *filled.shape))), jnp.zeros(D))


def trace_of(case: Case, run: str, replay: bool, *, rows=None, shift=0) -> Trace:
    """Our trace [B, S, ...] of the recorded run whose keys begin with `run`."""
    model = model_of(case)
    the_plan = plan_of(case)
    examples = case.rows() if rows is None else rows
    prefix, _ = prefill(model.graph, model.params, case.batch(examples), jnp.arange(len(examples)))
    generated = np.atleast_2d(case[f"{run}generated"])
    S = generated.shape[1]
    schedule = np.full(S, -1)
    planned = np.atleast_1d(case.get("schedule", np.zeros(0, int)))[:S]
    schedule[: len(planned)] = planned
    named, blocks = _named(case, the_plan, run)
    condition = cond.stack([named], ["recorded"], len(the_plan.start), int(the_plan.quota.max()))
    if case.meta.get("plvr_target_only"):
        condition = dataclasses.replace(condition, opens=jnp.array([[False, True]]))
    stop = (388,)
    trace = sweep(
        model.graph, model.params, prefix, the_plan, condition, _bank(blocks, prefix, the_plan),
        decoding=Decoding(max_new_tokens=case.meta.get("max_new_tokens", S), stop=stop),
        steps=S, forced=jnp.asarray(schedule),
        replay=jnp.asarray(case[f"{run}step_input_embed"].transpose(1, 0, 2)) if replay else None,
        position_shift=jnp.asarray(shift),
    )  # fmt: skip
    return jax.tree.map(lambda x: np.asarray(x[0]) if x.ndim else x, trace)


def _tokens(key: str, ours: np.ndarray, recorded: np.ndarray, margin: np.ndarray) -> Check:
    """[S] ids: entries that differ, up to the first difference at a tie."""
    for s in np.flatnonzero(ours != recorded):
        if margin[s] < TIE:
            return Check(f"{key} (ids up to a tie at step {s})", 0, 0)
        return Check(f"{key} (id {ours[s]} at step {s}, recorded {recorded[s]}, margin {margin[s]:.3f})", np.inf, 0)
    return Check(f"{key} (ids)", 0, 0)


def _compare(case: Case, run: str = "", label: str = "", **options) -> Iterator[Check]:
    generated = np.atleast_2d(case[f"{run}generated"])
    mode, margin = case[f"{run}step_mode_pre"].T, case[f"{run}step_top2_margin"].T
    for replay in (True, False):
        trace = trace_of(case, run, replay, **options)
        way = f"{label or run}{'replayed' if replay else 'free'}"
        for b, ids in enumerate(generated):
            row = f"{way}[{b}] " if len(generated) > 1 else f"{way} "
            # Rows of a recorded batch that ended early are padded there; ours stop.
            S = int(trace.live[b].sum())
            yield _tokens(f"{row}generated", trace.token[b][:S], ids[:S], margin[b])
            same = np.flatnonzero(trace.token[b][:S] != ids[:S])
            S = min([S, *same])  # states after a tie that went the other way belong to another text
            yield equal(f"{row}step_mode_pre", trace.latent[b][:S], mode[b][:S])
            headed = case.kind == "C3"
            if replay and not headed:
                recorded = case[f"{run}step_hidden"][:S, b]
                yield relative(f"{row}step_hidden", trace.hidden[b][:S], recorded, REPLAYED)
            if replay and not headed and f"{run}step_logits" in case:
                logits = model_of(case).bound.text.logits(trace.hidden[b][:S])
                yield relative(f"{row}step_logits", logits, case[f"{run}step_logits"][:S, b], REPLAYED)
            if not replay:
                fed = case[f"{run}step_input_embed"][:S, b]
                where = mode[b][:S] == 1
                yield relative(f"{row}injected_latents", trace.fed[b][:S], fed, FREE, where)
    if headed:
        yield from _headed(case)


def _headed(case: Case) -> Iterator[Check]:
    """With a head the recorded state is that before it: ours at a latent step is the head's output of it."""
    trace = trace_of(case, "", True)
    head = model_of(case).bound.latent_head
    for s, hidden in enumerate(case["step_hidden"][:, 0]):
        theirs = np.asarray(head(jnp.asarray(hidden))) if case["step_mode_pre"][s, 0] else hidden
        yield relative(f"replayed step_hidden[{s}]", trace.hidden[0][s], theirs, REPLAYED)


def generation(case: Case) -> Iterator[Check]:
    """Compares generation step by step."""
    if case.kind == "D3":
        yield from _left_padded(case)
        return
    if "step_position_ids" in case:
        examples, model = case.rows(), model_of(case)
        prefix, _ = prefill(model.graph, model.params, case.batch(examples), jnp.arange(len(examples)))
        steps = np.arange(1, len(case["step_position_ids"]))
        ours = np.asarray(prefix.next_position)[None] + steps[:, None] - 1
        for axis in (1, 2, 3):
            yield equal(f"step_position_ids[{axis}]", ours, case["step_position_ids"][1:, axis])
    yield from _compare(case)


def _left_padded(case: Case) -> Iterator[Check]:
    """The reference decodes left-padded rows at positions shifted back by the padding. Right positions are our
    default and must equal the same row run alone; the recorded batch needs the shift asked for."""
    padding = (case["attention_mask"] == 0).sum(1)
    yield from _compare(case, label="shifted_", shift=-jnp.asarray(padding))
    alone = _Alone(case)
    rows = case.rows()[1:]
    yield from _compare(alone, label="alone_", rows=rows)


class _Alone(Case):
    """Row 1 of case D3, run alone: its `single_*` keys under their plain names."""

    def __init__(self, case: Case):
        self.__dict__.update(case.__dict__)
        self.arrays = {k.removeprefix("single_"): v for k, v in case.arrays.items() if k.startswith("single_")}


def corruption(case: Case) -> Iterator[Check]:
    """Compares generation under recorded corruptions."""
    for run in ("clean_", "truncate_", "noise_0.1_", "noise_0.3_", "noise_1.0_", "swap_"):
        if f"{run}generated" in case:
            yield from _compare(case, run)


CHECKERS = {
    "C1": head_module, "C3": generation, "E": corruption, **{f"D{i}": generation for i in range(1, 8)}
}  # fmt: skip
