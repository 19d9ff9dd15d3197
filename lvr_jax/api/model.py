"""Opens a checkpoint and asks it: one question, a sweep under conditions, states by position and layer."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from lvr_jax.api import sweep as sweeps
from lvr_jax.api.conditions import Asked as AskedCondition
from lvr_jax.api.conditions import resolve
from lvr_jax.api.pieces import Piece, pieces
from lvr_jax.api.questions import Asked, ItemError, Picture, Questions, is_one, item_of, several
from lvr_jax.api.reply import Reply
from lvr_jax.api.stream import Stream
from lvr_jax.api.sweep import Sweep
from lvr_jax.data.sample import DataError, Sample
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.evaluation import protocol as protocols
from lvr_jax.evaluation.protocol import Budget, Protocol
from lvr_jax.evaluation.subject import BUDGET, PROMPTS, Subject, open_subject
from lvr_jax.latents import sweep as engine
from lvr_jax.latents.conditions import ConditionError, name_number
from lvr_jax.latents.spec import MOST_LATENTS
from lvr_jax.latents.stream import stream
from lvr_jax.latents.sweep import KEEP, Sweeper
from lvr_jax.models.layers import Compute
from lvr_jax.prism.measure import capture
from lvr_jax.prism.measure.items import Items, template_for

DTYPES = ("float32", "bfloat16")
ROWS = 8
DEFAULT = ("zero", "mean", "donor")
KEPT = (*KEEP, "blocks", "count")
# Letters whose logits are kept: so many, or a multiple, that another number of options is no other program.
_LETTERS = 8


def open_model(
    checkpoint: str | os.PathLike, *, system: str | None = None, protocol: str = "clean", budget: int | None = None,
    prompts: str | None = None, max_new_tokens: int | None = None, force_latents: bool = False,
    dtype: str | None = None, seed: int = 0,
) -> Model:  # fmt: skip
    """Opens a checkpoint, Hugging Face or ours, local or gs://, to be asked.

        model = lvr_jax.open("LVR-7B")

    system: its latent system, "none" for ordinary text (default: what config.json and tokenizer say)
    protocol: how it is asked, "clean" (default: what `tools/evaluate.py` recommends: one resize as in training, greedy,
        no repetition penalty, 8 latents a block) or "paper"; the next three are switches of it
    budget: latents a block; prompts: a harness of evaluation.prompts, which writes options and instruction (defaults:
        what config.json says as `lvr_budget` and `lvr_prompts`, else the protocol's); max_new_tokens: of a reply
    force_latents: every prompt ends with the start marker, so that a latent block is always opened
    dtype: of the computation, "float32" (default on a CPU) or "bfloat16"; weights that are stored in bfloat16 are held
        so, and widened where they are used
    seed: of noise and donors

    Raises CheckpointError, ConfigError, SpecError or DataError, one line each, before weights are read where that is
    possible.
    """
    given = {"prompts": prompts, "max_new_tokens": max_new_tokens}
    _protocol(protocol, budget, given)                      # refused before weights are read
    if dtype is not None and dtype not in DTYPES:
        raise DataError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed!r}, expected a whole number from 0, below 2**32")
    if not isinstance(force_latents, bool):
        raise DataError(f"force_latents is {force_latents!r}, expected True or False")
    compute = Compute.of_prompts(dtype)
    # Weights stored in bfloat16 stay so in float32: widened where they are used, the same network in half the memory.
    subject = open_subject(checkpoint, system=system, dtype=compute.dtype if compute.dtype.itemsize < 4 else None)
    given["prompts"] = prompts or subject.fields.get(PROMPTS)
    budget = subject.fields.get(BUDGET) if budget is None else budget
    return Model(subject, _protocol(protocol, budget, given), compute, seed, force_latents)


def _protocol(name: str, budget: int | None, switches: Mapping[str, Any]) -> Protocol:
    """The named protocol with the switches that are not None; the budget is latents a block in every kind of run."""
    found = {key: value for key, value in switches.items() if value is not None}
    if budget is not None:
        if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= MOST_LATENTS:
            raise DataError(f"budget is {budget!r}, expected a whole number, 1 to {MOST_LATENTS} latents a block")
        found |= dict.fromkeys(("steps", "staged_steps"), Budget(budget, budget, budget))
    return protocols.protocol(name, **found)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """An open checkpoint. Made by `lvr_jax.open`.

    subject: network, parameters, tokenizer, latent system; protocol: how it is asked (evaluation.protocol)
    """

    subject: Subject
    protocol: Protocol
    compute: Compute
    seed: int = 0
    force_latents: bool = False

    def __repr__(self) -> str:
        return (f"Model({self.subject.name!r}, system {self.subject.spec.name!r}, {self.latents} latents a block, "
                f"protocol {self.protocol.name.split(',')[0]!r})")  # fmt: skip

    @property
    def latents(self) -> int:
        """The longest block that the budget allows."""
        return int(np.max(self.subject.plan(self.protocol).quota))

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Encodes and decodes ids, such as `Reply.tokens`."""
        return self.subject.tokenizer

    @property
    def positions(self) -> tuple[str, ...]:
        """Names that `states` takes (what they are: prism.measure.capture)."""
        return capture.position_names(self.latents)

    @property
    def layers(self) -> int:
        """L, blocks of the decoder."""
        return self.subject.config.text.layers

    def ask(
        self, image: Picture | Asked, question: str | None = None, options: Sequence[str] | None = None, **fields
    ) -> Reply:  # fmt: skip
        """Asks one question about one picture, the latents as the model makes them.

            reply = model.ask("photo.jpg", "What colour is the cup?", options=["red", "blue"])
            reply.letter, reply.content, reply.latents.shape, reply.nearest[0][0].box

        image: as in `Item`, or one whole item alone, as `sweep` takes it; fields: further ones of `Item` (answer, box).
        Raises ItemError or ImageError, one line, for what cannot be asked.
        """
        return self.stream(image, question, options, **fields).reply

    def stream(
        self, image: Picture | Asked, question: str | None = None, options: Sequence[str] | None = None, **fields
    ) -> Stream:  # fmt: skip
        """`ask`, read while it is decoded: an iterator of `Piece`s, texts and latents, whose `reply` is the whole.

            stream = model.stream("photo.jpg", "What colour is the cup?", options=["red", "blue"])
            for piece in stream:
                print(piece, end="", flush=True)            # a latent prints as [latent 0]
            stream.reply.letter

        A latent comes when it is about to be fed, text when its last character is whole. Raises as `ask` does, at once.
        """
        whole = question is None and is_one(image)
        if whole and (options is not None or fields):
            raise ItemError("options and further fields are those of the item, expected it alone")
        asked = image if whole else item_of({"image": image, "question": question, "options": options, **fields})
        items = self._items([asked])
        (prompts,) = items.prompts()
        sweeper = self._sweeper(items, keep=(*KEPT, "attention@answer"), record=("attention",))

        def made() -> Generator[Piece, None, Reply]:
            results = yield from pieces(stream(sweeper, prompts), self.subject.tokenizer.decode)
            return sweeps.read(items, results, self.compute)["clean"][0]

        return Stream(made())

    def sweep(
        self, items: Asked | Sequence[Asked], conditions: AskedCondition | Sequence[AskedCondition] = DEFAULT, *,
        attention: bool = False, chunk: int | None = None, progress: bool = False,
    ) -> Sweep:  # fmt: skip
        """Asks items under the clean pass and every condition, with one prefill an item.

            sweep = model.sweep(items, ["zero", "donor", lvr_jax.noise(0.3), my_condition])
            sweep["donor"][0].letter; pandas.DataFrame(sweep.table())

        items: one or a list, each an Item, a Sample, (image, question, options, answer, box) or a dict
        conditions: names, lvr_jax.conditions, or functions of the clean latents (see lvr_jax.conditions)
        attention: record attention shares of every reply, which takes memory; chunk: conditions at a time (default: as
            many as fit); progress: show a bar
        Raises ItemError, ImageError, ConditionError or SourceError, one line each.
        """
        asked = several(items)
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise ConditionError(f"chunk is {chunk!r}, expected how many conditions at a time, 1 or more")
        wanted = list(conditions) if isinstance(conditions, list | tuple) else [conditions]
        extra, record = (("attention@answer",), ("attention",)) if attention else ((), ())
        return self._sweep(asked, wanted, keep=(*KEPT, *extra), record=record, chunk=chunk,
                           progress=progress)  # fmt: skip

    def states(
        self, items: Asked | Sequence[Asked], position: str = "last_latent", layer: int | None = -1, *,
        progress: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """The decoder's states [I, D] (fp32) at one position of each item's clean reply, and one layer.

        position: one of `Model.positions`, such as "latent_0", "last_latent", "answer", "question" or "image" (of
        several tokens the mean); layer: 0 is what is fed, l the output of block l, the last one after the final
        norm; None: all of them, [I, 1 + L, D]. An item without the position has NaN.
        Raises ConditionError for a position or a layer that does not exist, or if no item has the position.
        """
        asked = several(items)
        names, depth = self.positions, self.layers
        if position not in names:
            raise ConditionError(f"position {position!r} does not exist, expected one of {', '.join(names)}")
        whole = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
        if layer is not None and not (whole and -depth - 1 <= layer <= depth):
            raise ConditionError(f"layer {layer!r} does not exist, this network has 0 (what is fed) to {depth}")
        questions = self._items(asked)
        with tempfile.TemporaryDirectory(prefix="lvr_jax_") as folder:
            capture.run(self._sweeper(questions, progress=progress), questions.prompts(), folder, spans=questions.spans,
                        layers="all", weights=self.subject.weights)  # fmt: skip
            found = capture.read(folder, (position,), None if layer is None else (layer,))
        states = found.states[:, 0][np.argsort(questions.places(found.items))]                # [I, L, D]
        if not np.isfinite(states).any():
            hint = "" if self.force_latents else "; force_latents=True opens a block in each"
            raise ConditionError(f"position {position!r}: none of {len(asked)} items has it{hint}")
        return states if layer is None else states[:, 0]

    # The engine ------------------------------------------------------------------------------------------------------

    def _items(self, asked: Sequence[Asked]) -> Items:
        questions = Questions(asked, self.protocol.prompts)
        boxed = any(item.boxes if isinstance(item, Sample) else item.box is not None for item in questions.items)
        template = template_for(self.subject) if boxed else None
        return Items(self.subject, questions, self.protocol, template, rows=min(len(questions), ROWS), seed=self.seed,
                     force=self.force_latents, rounded=True)  # fmt: skip

    def _sweeper(self, items: Items, progress: bool = False, **options) -> Sweeper:
        ids = items.place.ids
        padded = (*ids, *[ids[-1] if ids else 0] * (-len(ids) % _LETTERS or _LETTERS * (not ids)))
        return items.sweeper(self.subject.plan(self.protocol), self.compute, letters=padded, seed=self.seed,
                             progress=progress, **options)  # fmt: skip

    def _sweep(self, asked: Sequence[Asked], conditions: Sequence[AskedCondition], **options) -> Sweep:
        items = self._items(asked)
        plan = self.subject.plan(self.protocol)
        records, sources = resolve(conditions, [name_number(i) for i in items.ids], plan)
        self._check(items, records, sources)
        with tempfile.TemporaryDirectory(prefix="lvr_jax_") as folder:
            engine.run(self._sweeper(items, sources=sources, **options), items.prompts(), records, folder)
            return sweeps.read(items, engine.read(folder), self.compute)

    def _check(self, items: Items, records, sources) -> None:
        """Refuses what these items cannot serve, before anything runs."""
        for c in records:
            if not self.subject.has_latents and c.kind != "clean":
                raise ConditionError(f"condition {c.name!r}: {self.subject.name} is open as system 'none': no latents")
            source = sources.get(c.source)
            if source is not None and source.donor is not None and len(items.ids) < 2:
                raise ConditionError(f"condition {c.name!r} needs the latents of other items, and one item is asked")
            for name in filter(None, (c.context, source and source.of_variant)):
                if name not in items.variants:
                    known = ", ".join(items.variants)
                    raise ConditionError(f"condition {c.name!r} needs the prompt {name!r}, these items have {known}")
