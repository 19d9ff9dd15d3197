"""Lets a checkpoint reply to a batch of questions and reads the replies.

One compiled program a budget: prefill and latent loop together, so that the recorded vectors of the loop, which no
result needs, are never kept.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import Example
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.evaluation.content import word_before
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.results import Result
from lvr_jax.evaluation.rows import BenchmarkError, Row
from lvr_jax.evaluation.scoring import judge
from lvr_jax.evaluation.subject import Subject
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import positions, rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.spec import Plan
from lvr_jax.models.compiler_options import Jit
from lvr_jax.models.layers import Compute

# How a system marks its answer (LatentSpec.answer): what stands before and after the letter, and a pattern that finds
# the answer in a reply. Published rules know the tag, so that any other mark is rewritten into it before they read.
MARKS = {"tag": ("<answer> ", " </answer>", None), "boxed": ("\\boxed{", "}", re.compile(r"\\boxed\s*\{([^{}]*)\}"))}

KEPT = ("token", "live", "latent", "stage", "index", "letters")


@dataclasses.dataclass(frozen=True)
class LetterPlace:
    """Where the answer's letter is picked: id sequences that lead to it, and the first id of each letter there."""

    opening: tuple[tuple[int, ...], ...]
    ids: tuple[int, ...]

    def tell_apart(self, letters: int) -> bool:
        """Whether the first token already says which of that many letters it is."""
        return 0 < letters <= len(self.ids) and len(set(self.ids[:letters])) == letters


def letter_place(tokenizer: ChatTokenizer, mark: str, letters: str) -> LetterPlace:
    """Finds where the answer's letter is picked, by encoding marked answers.

    What all of them share is the opening; the first id that differs is the letter's.

    What precedes the mark may be merged into it, so the opening is looked for behind a space and a newline too.
    """
    before, after, _ = MARKS[mark]
    if len(letters) < 2:
        return LetterPlace((), ())
    openings, ids = [], []
    for lead in ("", " ", "\n"):
        encoded = [list(map(int, tokenizer.encode(f"{lead}{before}{letter}{after}"))) for letter in letters]
        shared = next(i for i, column in enumerate(zip(*encoded)) if len(set(column)) > 1)
        openings.append(tuple(encoded[0][:shared]))
        ids.append(tuple(each[shared] for each in encoded))
    # A lead that stayed a token of its own adds nothing, one that changed the letters is another place.
    plain = openings[0]
    others = [o for o, i in zip(openings, ids) if i == ids[0] and o[-len(plain) :] != plain]
    return LetterPlace((plain, *dict.fromkeys(others)), ids[0])


def answer(
    graph, params, plan: Plan, batch: Mapping, item, letters, *, decoding: Decoding, steps: int, compute: Compute,
    attention: str,
) -> dict:  # fmt: skip
    """The jitted program: prompts of a batch, one a row -> the fields KEPT of their traces [B, S, ...]."""
    prefix, _ = rollout.prefill(
        graph, params, batch, item, compute=compute, remember_ids=decoding.repetition_penalty != 1,
        blocked=blocked(attention),
    )  # fmt: skip
    clean = jax.tree.map(lambda x: x[0], cond.stack([cond.clean()], (), len(plan.spec.stages), 1))
    trace = rollout.rollout(
        graph, params, prefix, plan, clean, rollout.no_bank(prefix, plan), decoding=decoding, steps=steps,
        letters=letters, compute=compute,
    )  # fmt: skip
    return {name: getattr(trace, name) for name in KEPT}


program = Jit(answer, static_argnums=0, static_argnames=("decoding", "steps", "compute", "attention"))


class Generation:
    """Replies by the latent loop, greedily, read by the protocol's extraction rule."""

    def __init__(self, subject: Subject, rows: Sequence[Row], protocol: Protocol, rule: str, compute: Compute):
        if protocol.repetition_penalty != 1 and not protocol.penalise_slot_ids:
            raise BenchmarkError(f"protocol {protocol.name}: repetition_penalty {protocol.repetition_penalty} with"
                                 " penalise_slot_ids False, expected True (a penalty that spares the ids of latent"
                                 " slots is not implemented)")
        self.subject, self.rule, self.compute = subject, rule, compute
        self.plan = subject.plan(protocol)
        self.decoding = Decoding(protocol.max_new_tokens, subject.stop, protocol.repetition_penalty)
        # A block that is open when the answer's length is reached is finished first.
        self.steps = protocol.max_new_tokens + int(np.max(self.plan.quota))
        most = max(len(row.choices) for row in rows)
        self.place = letter_place(subject.tokenizer, subject.spec.answer, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:most])
        self._mark = MARKS[subject.spec.answer][2]

    def inputs(self, rows: Sequence[Row], prompts: Sequence[Example], budget: Budget, geometry: Geometry) -> dict:
        """What the device gets, [B, ...]; on the host."""
        batch = collate([[prompt] for prompt in prompts], budget, geometry)
        return batch | {"item": np.array([cond.name_number(row.id) for row in rows], np.int32)}

    def run(self, inputs: dict) -> dict[str, jax.Array]:
        """Starts the program; does not wait."""
        batch = {key: value for key, value in inputs.items() if key != "item"}
        return program(
            self.subject.graph, self.subject.params, self.plan, batch, inputs["item"],
            np.asarray(self.place.ids, np.int32), decoding=self.decoding, steps=self.steps, compute=self.compute,
            attention=self.subject.attention,
        )  # fmt: skip

    def read(self, rows: Sequence[Row], questions: Sequence[str], out: Mapping[str, np.ndarray]) -> list[Result]:
        """One result a row of what `run` made."""
        found = positions.masks(out, self.plan, self.place.opening)
        at = positions.step(found["answer"])                            # [B]
        return [self._result(row, question, {key: value[b] for key, value in out.items()}, int(at[b]))
                for b, (row, question) in enumerate(zip(rows, questions))]

    def _result(self, row: Row, question: str, trace: Mapping[str, np.ndarray], at: int) -> Result:
        live = trace["live"]
        reply = self.subject.tokenizer.decode(trace["token"][live])
        latents = int((trace["latent"] & live).sum())
        parsed, correct = judge(row, self.tagged(reply), self.rule)
        said = self.subject.tokenizer.decode(trace["token"][positions.spoken(live, trace["latent"])])
        letters = len(row.choices)
        logits = trace["letters"][at, :letters] if at >= 0 and self.place.tell_apart(letters) else ()
        return Result(
            id=row.id, correct=bool(correct), prompt=question, reply=reply, parsed=parsed, letter=row.letter,
            answer=row.answer, category=row.category, group=row.group, cycle=row.cycle,
            letter_logits=tuple(float(f"{x:.6g}") for x in logits), latents_fed=latents, triggered=latents > 0,
            word=word_before(said, self._mark),
        )  # fmt: skip

    def follows(self, row: Row, result: Result) -> bool:
        """Whether a result's verdict is what its reply gives."""
        return judge(row, self.tagged(result.reply), self.rule) == (result.parsed, result.correct)

    def tagged(self, reply: str) -> str:
        """The reply as the extraction rules want it: the last answer that is marked in another way, in a tag."""
        marked = self._mark.findall(reply) if self._mark else []
        return f"<answer>{marked[-1].strip()}</answer>" if marked else reply
