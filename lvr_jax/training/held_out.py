"""Evaluates a model on held-out examples, teacher-forced and free-running.

Teacher-forced: the training losses and the cosine of predicted latents with teacher forcing. Free-running: the reply is
decoded greedily with the system's own latents; the reply's answer must be exactly the expected text, and every latent
that was fed is compared with the vision token that stands at its place in the expected reply.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lvr_jax.data.chat import ANSWER_FORMATS, encode_prompt
from lvr_jax.data.from_config import DataConfig, make_encode
from lvr_jax.data.packing import Batch, Budget, collate
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import IM_END
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import objectives
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.objectives import Weights
from lvr_jax.latents.rollout import Trace, no_bank, prefill, rollout
from lvr_jax.latents.spec import PREDICTORS, Plan, plan, system
from lvr_jax.models import compiler_options
from lvr_jax.models.layers import Compute
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.input import sources_of
from lvr_jax.training.state import State, join
from lvr_jax.training.step import Metrics, Recipe

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
ROUND = 64      # budgets are rounded up to this, so that few shapes are compiled


def _plainly(recipe: Recipe) -> Compute:
    """The same compute with XLA attention: prompts have lengths that other kernels do not take."""
    return dataclasses.replace(recipe.compute, attention="xla", remat="none")


def _replicating(program: Callable, mesh: Mesh) -> Callable:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(program, out_shardings=whole, compiler_options=compiler_options.of_mesh(mesh))


def teacher_forcing(recipe: Recipe, mesh: Mesh) -> Callable[[dict, dict], Metrics]:
    """The jitted program of teacher forcing: (params, batch) -> parts of the loss."""
    compute = _plainly(recipe)
    objective = dataclasses.replace(recipe.objective, feedback="teacher", noise=0.0, route="both", target="own")
    weights = Weights(jnp.float32(1), jnp.float32(0))

    def losses(params: dict, batch: dict):
        model = nnx.merge(recipe.graph, params)
        total = objectives.totals(batch)
        return objectives.loss(model, batch, objective, weights, total, jax.random.key(0), compute)[1]

    return _replicating(losses, mesh)


def free_replies(recipe: Recipe, mesh: Mesh, plan: Plan, decoding: Decoding) -> Callable[[dict, dict], tuple]:
    """The jitted program of free replies: (params, batch of prompts) -> token, live, latent, stage, block, index, fed
    of a trace, and the merged vision tokens."""
    compute, blocked = _plainly(recipe), recipe.objective.blocked()
    overrun = int(np.asarray(plan.quota).max(initial=0))
    condition = cond.stack([cond.clean()], [], len(plan.start), max(overrun, 1))
    condition = jax.tree.map(lambda x: x[0], condition)

    def replies(params: dict, batch: dict):
        item = jnp.arange(batch["tokens"].shape[0])
        prefix, taps = prefill(recipe.graph, params, batch, item, compute=compute, taps=("merged",), blocked=blocked)
        trace: Trace = rollout(
            recipe.graph, params, prefix, plan, condition, no_bank(prefix, plan), decoding=decoding,
            steps=decoding.max_new_tokens + overrun, compute=compute,
        )  # fmt: skip
        where = trace.stage, trace.block, trace.index
        return trace.token, trace.live, trace.latent, *where, trace.fed, taps["merged"]

    return _replicating(replies, mesh)


class HeldOut:
    """A fixed slice of other data, held on the host; `measure` runs it.

    Every process encodes the same items and shows its devices their part.
    """

    def __init__(self, experiment: Experiment):
        c, self.experiment = experiment.config.held_out, experiment
        data = dataclasses.replace(experiment.data, sources=c.sources.to_dict() or experiment.data.sources)
        self.samples, examples = _read(data, c.examples, experiment)
        spread = experiment.mesh.shape["data"] * experiment.mesh.shape["fsdp"]
        kept = len(examples) - len(examples) % spread
        if not kept:
            raise DataError(f"held_out.examples = {c.examples}: expected at least {spread}, one a device with rows")
        self.samples, examples = self.samples[:kept], examples[:kept]
        self.answers = [_answer(expected_reply(s, data.answer_format)) for s in self.samples]
        self.plan = _plan(experiment)
        self.taught = self._collate(examples)
        prompts = [
            encode_prompt(
                s, experiment.tokenizer, TEMPLATES[data.template], min_pixels=data.min_pixels,
                max_pixels=data.max_pixels, system=data.system, protocol=data.protocol,
            )
            for s in self.samples
        ]  # fmt: skip
        self.prompts = self._collate(prompts)
        self.wanted = [_block_tokens(self.taught, row) for row in range(kept)]
        self.stop = experiment.tokenizer.id(IM_END)
        self._teacher_forcing = teacher_forcing(experiment.recipe, experiment.mesh)
        decoding = Decoding(c.max_new_tokens, (self.stop,))
        self._free_replies = free_replies(experiment.recipe, experiment.mesh, self.plan, decoding)

    def _collate(self, examples: Sequence[Example]) -> Batch:
        geometry = self.experiment.data.settings.geometry
        rows = [[e] for e in examples]
        least = geometry.smallest(rows)
        up = lambda n: -(-n // ROUND) * ROUND  # noqa: E731
        return collate(rows, Budget(up(least.tokens), least.windows, least.pooled), geometry)

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        """The whole batch on every process -> global arrays, rows spread as in training."""
        where = self.experiment.rows
        return {k: jax.make_array_from_callback(x.shape, where, lambda i, x=x: x[i]) for k, x in batch.items()}

    def measure(self, state: State) -> dict[str, float]:
        """`held_out/...`: loss_ce, loss_lvr, cosine and accuracy (next token) with teacher forcing; free_accuracy
        (answers), free_cosine (latents fed against those expected; absent without latents), emitted (rows that opened
        a block)."""
        params = join(state.trained, state.frozen)
        parts = jax.device_get(self._teacher_forcing(params, self._place(self.taught)))
        found = {f"held_out/{k}": float(v) for k, v in parts.items() if k != "loss_total"}
        token, live, latent, *where, fed, merged = jax.device_get(
            self._free_replies(params, self._place(self.prompts))
        )
        replies = [self._text(*row) for row in zip(token, live, latent)]
        right = [_answer(reply) == answer for reply, answer in zip(replies, self.answers)]
        found["held_out/free_accuracy"] = float(np.mean(right))
        cosines = [
            c
            for row, wanted in enumerate(self.wanted)
            for c in _cosines(latent[row], [w[row] for w in where], fed[row], merged[row], wanted)
        ]
        if any(self.wanted):
            found["held_out/emitted"] = float(np.mean(latent.any(-1)))
        return found | ({"held_out/free_cosine": float(np.mean(cosines))} if cosines else {})

    def _text(self, token: np.ndarray, live: np.ndarray, latent: np.ndarray) -> str:
        """The reply without ids that were stored while the next position was a latent, or after the end."""
        inside = np.append(latent[1:], False)
        ids = [t for t in token[live & ~inside].tolist() if t != self.stop]
        return self.experiment.tokenizer.decode(ids, skip_special_tokens=True)


def _read(data: DataConfig, items: int, experiment: Experiment) -> tuple[list[Sample], list[Example]]:
    """The first `items` sound samples, taking the sources in turn."""
    encode = make_encode(data, experiment.tokenizer)
    sources = sources_of(data, experiment.config.mask_boxes)
    longest = max(len(s.data) for s in sources)
    samples, examples = [], []
    for source, i in ((s, i) for i in range(longest) for s in sources if i < len(s.data)):
        if len(samples) == items:
            break
        try:
            sample = source.data[i]
            example = encode(sample)
        except DataError:       # damaged records are counted where they are trained on
            continue
        samples.append(sample)
        examples.append(example)
    return samples, examples


def _plan(experiment: Experiment) -> Plan:
    c = experiment.config.system
    spec = dataclasses.replace(system(c.name), head_at=PREDICTORS)      # as it is trained
    return plan(spec, {t: experiment.tokenizer.id(t) for t in spec.added_tokens}, c.budget)


def expected_reply(sample: Sample, answer_format: str) -> str:
    """The reply that training taught for a sample."""
    return ANSWER_FORMATS[answer_format].format(answer=sample.answer, letter=sample.letter)


def _answer(reply: str) -> str:
    """What stands in the first <answer> tag, else the whole reply; outer spaces do not count."""
    found = ANSWER.search(reply)
    return (found.group(1) if found else reply).strip()


def _block_tokens(batch: Batch, row: int) -> dict[tuple[int, int], list[list[int]]]:
    """(kind of visual block, number of block of that kind) -> the merged slots that each of its latents averages."""
    stage, slot, group = batch["stage"][row], batch["vision_slot"][row], batch["group"][row]
    latent = (stage > 0) & (slot >= 0)
    kinds = sorted(set(stage[latent].tolist()))
    pools: dict[int, list[int]] = {}
    for token, merged in batch["pool"][row]:
        if token >= 0:
            pools.setdefault(int(token), []).append(int(merged))
    found: dict[tuple[int, int], list[list[int]]] = {}
    numbers: dict[int, tuple[int, int]] = {}
    for t in np.flatnonzero(latent):
        kind = kinds.index(stage[t])
        if group[t] not in numbers:
            numbers[group[t]] = (kind, sum(k == kind for k, _ in numbers.values()))
        found.setdefault(numbers[group[t]], []).append(pools.get(int(t), [int(slot[t])]))
    return found


def _cosines(
    latent: np.ndarray, where: Sequence[np.ndarray], fed: np.ndarray, merged: np.ndarray, wanted: Mapping
) -> list[float]:
    """Of every latent fed in one row with the token expected at its place; latents beyond the box have none."""
    stage, block, index = where
    blocks = sorted(set(block[latent].tolist()))
    found = []
    for number in blocks:
        steps = latent & (block == number)
        kind = int(stage[steps][0])
        same_kind_before = sum(int(stage[latent & (block == b)][0]) == kind for b in blocks if b < number)
        for step in np.flatnonzero(steps):
            expected = wanted.get((kind, same_kind_before), [])
            if index[step] < len(expected):
                target = merged[expected[index[step]]].astype(np.float64).mean(0)
                own = fed[step].astype(np.float64)
                found.append(float(own @ target / max(np.linalg.norm(own) * np.linalg.norm(target), 1e-12)))
    return found
