"""Picks the option that a checkpoint finds most likely: V*Bench's own protocol, no text is generated.

Options are never shown. Each is read as the reply, teacher-forced on the cache of image and question (which is filled
once an item) and closed by the end of the turn; the smallest mean token loss wins. Source: penghao-wu/vstar,
`vstar_bench_eval.py`. Latents play no part here: the reply is forced, so no marker is ever picked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import ROLE_ANSWER, Example
from lvr_jax.data.tokenizers import IM_END
from lvr_jax.evaluation.extraction import most_likely, plain_text
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.results import Result
from lvr_jax.evaluation.rows import BenchmarkError, Row
from lvr_jax.evaluation.subject import Subject
from lvr_jax.latents import rollout
from lvr_jax.latents.routing import blocked
from lvr_jax.models.compiler_options import Jit
from lvr_jax.models.interface import Network
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Tokens


def score(graph, params, batch: Mapping, options: jax.Array, *, compute: Compute, attention: str) -> jax.Array:
    """The jitted program: options [B, O, T] ids, -1 beyond an option's end -> log-probabilities [B, O, T], 0 there."""
    model: Network = nnx.merge(graph, params)
    prefix, _ = rollout.prefill(
        graph, params, batch, jnp.zeros(options.shape[0], jnp.int32), compute=compute, blocked=blocked(attention)
    )

    def one(ids):                                                                        # [B, T]
        real = ids >= 0
        at = prefix.next_position[:, None] + jnp.arange(ids.shape[1])
        tokens = Tokens(
            positions=jnp.broadcast_to(at[:, None], (ids.shape[0], 3, ids.shape[1])),
            segment=jnp.where(real, prefix.segment[:, None], 0), role=jnp.full(ids.shape, ROLE_ANSWER),
            blocked=prefix.blocked,
        )  # fmt: skip
        hidden, _, _ = model.decode(model.embed(jnp.maximum(ids, 0)), tokens, past=(prefix.cache,), compute=compute)
        predictors = jnp.concatenate([prefix.hidden[:, None], hidden[:, :-1]], axis=1)   # [B, T, D]
        log_probs = jax.nn.log_softmax(model.logits(predictors))                    # [B, T, V]
        return jnp.where(real, jnp.take_along_axis(log_probs, jnp.maximum(ids, 0)[..., None], -1)[..., 0], 0)

    # One option after the other: logits of all options at once would be the largest array by far.
    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(options, 1, 0)), 0, 1)


program = Jit(score, static_argnums=0, static_argnames=("compute", "attention"))


def replies(row: Row) -> tuple[tuple[str, ...], int]:
    """The texts that are compared and which of them is right.

    V*Bench comes with whole sentences for this, the right one first; any other lettered question has its options.
    """
    sentences = row.texts.get("likelihood_options")
    if sentences:
        return tuple(sentences), 0
    if not row.options or row.letter is None:
        raise BenchmarkError(f"item {row.id}: no options to compare, expected at least two (likelihood of options)")
    return row.options, list(row.choices).index(row.letter)


class Likelihood:
    """The likeliest option; `letter_logits` of a result are the options' mean log-probabilities."""

    def __init__(self, subject: Subject, rows: Sequence[Row], protocol: Protocol, rule: str, compute: Compute):
        self.subject, self.compute = subject, compute
        self.ids = {row.id: [subject.tokenizer.encode(text + IM_END) for text in replies(row)[0]] for row in rows}
        self.shape = max(map(len, self.ids.values())), max(len(ids) for each in self.ids.values() for ids in each)

    def inputs(self, rows: Sequence[Row], prompts: Sequence[Example], budget: Budget, geometry: Geometry) -> dict:
        options = np.full((len(rows), *self.shape), -1, np.int32)
        for b, row in enumerate(rows):
            for o, ids in enumerate(self.ids[row.id]):
                options[b, o, : len(ids)] = ids
        return collate([[prompt] for prompt in prompts], budget, geometry) | {"options": options}

    def run(self, inputs: dict) -> dict[str, jax.Array]:
        batch = {key: value for key, value in inputs.items() if key != "options"}
        scores = program(
            self.subject.graph, self.subject.params, batch, inputs["options"], compute=self.compute,
            attention=self.subject.attention,
        )  # fmt: skip
        return {"log_probs": scores}

    def follows(self, row: Row, result: Result) -> bool:
        """Whether a result's verdict is that of the option it names."""
        texts, right = replies(row)
        same = result.reply == result.parsed and result.reply in texts
        return same and (result.correct == (result.reply == texts[right]) or texts.count(result.reply) > 1)

    def read(self, rows: Sequence[Row], questions: Sequence[str], out: Mapping[str, np.ndarray]) -> list[Result]:
        return [self._result(row, question, scores) for row, question, scores in zip(rows, questions, out["log_probs"])]

    def _result(self, row: Row, question: str, scores: np.ndarray) -> Result:
        texts, right = replies(row)
        log_probs = [scores[o, : len(ids)] for o, ids in enumerate(self.ids[row.id])]
        chosen = most_likely(log_probs)
        return Result(
            id=row.id, correct=chosen == right, prompt=question, reply=texts[chosen], parsed=texts[chosen],
            letter=row.letter, answer=row.answer, category=row.category, group=row.group, cycle=row.cycle,
            letter_logits=tuple(float(f"{x.mean():.6g}") for x in log_probs), word=plain_text(texts[chosen]),
        )  # fmt: skip
