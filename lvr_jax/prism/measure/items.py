"""The items of an audit in batches, with the image regions that may stand in for their latents.

One `Items` a checkpoint: tokenizer, pixel limits and latent system decide prompts, letters and regions. Everything is
made when a batch is asked for, so that a resumed audit decodes no picture of a finished batch.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lvr_jax.data.boxes import box_to_tokens
from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.images import MERGE
from lvr_jax.data.layout_fields import LayoutError, layout_of
from lvr_jax.data.options import LETTERS
from lvr_jax.data.packing import Geometry, collate
from lvr_jax.data.sample import Example, Sample
from lvr_jax.data.templates import TEMPLATES, SequenceTemplate, latent_slots
from lvr_jax.data.tokenizers import IM_END, IM_START, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START
from lvr_jax.evaluation.asked import asked
from lvr_jax.evaluation.batches import ItemBatch, batches, prompt_size, rounded
from lvr_jax.evaluation.benchmarks import Benchmark, SampleBenchmark
from lvr_jax.evaluation.content import word_before
from lvr_jax.evaluation.extraction import plain_text, rule_name
from lvr_jax.evaluation.generation import MARKS, LetterPlace, letter_place
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.scoring import judge
from lvr_jax.evaluation.subject import Subject
from lvr_jax.latents import regions
from lvr_jax.latents.conditions import name_number
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.positions import spoken
from lvr_jax.latents.spec import Plan
from lvr_jax.latents.sweep import Prompts, Sweeper
from lvr_jax.models.layers import Compute
from lvr_jax.prism.measure import variants

REGIONS = ("box", "wrong_box", "random_crop")


@dataclasses.dataclass(frozen=True)
class Reply:
    """said: the reply without what is stored at latent steps; letter: that was read in it; right: the letter is; word:
    what stands before the letter."""

    said: str
    letter: str | None
    right: bool
    word: str


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """A benchmark as one checkpoint is asked it; `I` items in the benchmark's order.

    template: of its training sequences, for targets and boxes (None: its layout is not known)
    rows: items a batch; programs: how many budgets at most; seed: of moved boxes and random crops
    force: the prompt ends with the (last stage's) start marker, so that every item opens a latent block
    rounded: prompts are padded to a few sizes (batches.rounded), so that another question meets a compiled program
    """

    subject: Subject
    benchmark: Benchmark | SampleBenchmark
    protocol: Protocol
    template: SequenceTemplate | None
    rows: int = 8
    programs: int = 4
    seed: int = 0
    force: bool = False
    rounded: bool = False

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.benchmark.rows]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[I] the gold letter as a number, -1 where there is none."""
        return np.array([-1 if row.letter is None else LETTERS.index(row.letter) for row in self.benchmark.rows])

    @functools.cached_property
    def options(self) -> np.ndarray:
        """[I] how many letters an item offers."""
        return np.array([len(row.choices) for row in self.benchmark.rows])

    @property
    def categories(self) -> np.ndarray:
        return np.array([row.category for row in self.benchmark.rows])

    @functools.cached_property
    def contents(self) -> np.ndarray:
        """[I] the gold answer's text, normalised; its letter where options are drawn in the image, "" if unknown."""
        return np.array([plain_text(row.answer) if row.letter is None else plain_text(row.choices[row.letter])
                         or row.letter for row in self.benchmark.rows], object)  # fmt: skip

    def option_contents(self, i: int) -> list[str]:
        """What an item's options say, normalised like `contents`."""
        return [plain_text(text) or letter for letter, text in self.benchmark.rows[i].choices.items()]

    def part(self, indices: Sequence[int]) -> "Items":
        """The same for some items alone, in batches of one size of prompt."""
        return dataclasses.replace(self, benchmark=self.benchmark.subset(list(indices)), programs=1)

    @functools.cached_property
    def variants(self) -> tuple[str, ...]:
        """Other prompts that items have (measure.variants)."""
        return variants.available(self.benchmark)

    def counterfactual_contents(self) -> list[str | None]:
        """What the right answer about the changed scene would be; None where an item has no such scene."""
        changed = [self.benchmark.counterfactual(i) for i in range(len(self.ids))]
        return [None if sample is None else plain_text(sample.answer) for sample in changed]

    @functools.cached_property
    def place(self) -> LetterPlace:
        """Where the answer's letter is picked; no ids where the first token does not tell the letters apart."""
        most = int(self.options.max())
        found = letter_place(self.subject.tokenizer, self.subject.spec.answer, LETTERS[:most])
        return found if found.tell_apart(most) else LetterPlace(found.opening, ())

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.subject.config.vision.merge, self.subject.config.vision.window)

    @property
    def limits(self) -> dict:
        return {"min_pixels": self.subject.min_pixels, "max_pixels": self.subject.max_pixels,
                "protocol": self.protocol.image_protocol}  # fmt: skip

    @functools.cached_property
    def _surveyed(self) -> tuple[list[ItemBatch], np.ndarray, list[str]]:
        """The batches, which items have boxes, and digests of what is asked: one pass over the samples."""
        sizes, boxed, digests = [], [], []
        for i in range(len(self.benchmark)):
            sample = self.benchmark[i]
            size = prompt_size(sample, self.subject.tokenizer, self.geometry, **self.limits)
            sizes.append(dataclasses.replace(size, tokens=size.tokens + int(self.force)))
            boxed.append(bool(sample.boxes))
            digests.append(asked(sample, **self.limits, force=self.force))
        made = batches(sizes, self.rows, self.programs)
        if self.rounded:
            made = [dataclasses.replace(batch, budget=rounded(batch.budget)) for batch in made]
        return made, np.array(boxed), digests

    @property
    def batches(self) -> list[ItemBatch]:
        return self._surveyed[0]

    @property
    def boxed(self) -> np.ndarray:
        """[I] bool: items that have a box."""
        return self._surveyed[1]

    @property
    def asked(self) -> list[str]:
        """[I] digests of questions, options, answers and pictures, and of how they are shown."""
        return self._surveyed[2]

    @property
    def lacks_targets(self) -> str:
        """Why latents have no visual targets to be compared with; nothing where they have."""
        if self.template is None:
            return "the system's training layout is not known"
        visual = any(stage.box_scale is not None for stage in self.template.stages)
        return "" if visual else f"the training layout {self.template.name} has no visual targets"

    def prompts(self) -> list[Prompts]:
        """What the sweep and the capture run over."""
        return [self._prompts(batch) for batch in self.batches]

    def _prompts(self, batch: ItemBatch) -> Prompts:
        made = functools.lru_cache(maxsize=1)(lambda: [self.prompt(i) for i in batch.items])
        together = lambda examples: collate([[e] for e in examples], batch.budget, self.geometry)  # noqa: E731

        def variant(name):
            own = [example for _, example in made()]
            found, there = variants.examples(name, self.benchmark, batch.items, self._encoded, own)
            return together(found), there

        at = list(batch.items)
        return Prompts(
            ids=tuple(self.ids[i] for i in at), asked=tuple(self.asked[i] for i in at),
            batch=lambda: together([example for _, example in made()]),
            labels=self.labels[at], kinds=numbered(self.categories)[at],
            contents=np.where(self.contents == "", -1, numbered(self.contents))[at],
            regions=_Lazily(lambda name: [self.region(name, *each) for each in made()]) if self.boxed.any() else {},
            variants={name: functools.partial(variant, name) for name in self.variants},
        )  # fmt: skip

    def prompt(self, i: int) -> tuple[Sample, Example]:
        sample = self.benchmark[i]
        return sample, self._encoded(sample)

    def _encoded(self, sample: Sample) -> Example:
        suffix = self.subject.spec.stages[-1].start if self.force else ""
        return encode_prompt(sample, self.subject.tokenizer, suffix=suffix, **self.limits)

    def region(self, name: str, sample: Sample, example: Example) -> list[np.ndarray] | None:
        """For each stage of the system, the merged slots of a region (latents.sweep.Prompts.regions), or None."""
        grids, stages = example.grids, len(self.subject.spec.stages)
        sizes = grids.astype(np.int64).prod(1) // MERGE**2
        first, across = np.concatenate([[0], np.cumsum(sizes)]), grids[:, 1:] // MERGE
        number = name_number(sample.id)
        if name == "random_crop":
            raster = [regions.random_crop(across[0], number, self.seed)] * stages
        elif not sample.boxes:
            return None
        else:
            raster = self._boxes(sample, grids)
            if name == "wrong_box":
                image = (sample.box_images or (0,))[0]
                raster = [regions.moved(r, across[image], number, self.seed, int(first[image])) for r in raster]
        c = self.subject.config.vision
        return [regions.slots(r, grids, merge=c.merge, window=c.window, elsewhere=example.target_patches is not None)
                for r in raster]  # fmt: skip

    def _boxes(self, sample: Sample, grids: np.ndarray) -> list[np.ndarray]:
        """Raster indices of the first box, for each stage as the stage scales it."""
        one = dataclasses.replace(sample, boxes=sample.boxes[:1], box_images=sample.box_images[:1])
        found = [] if self.template is None else [
            np.concatenate(group.sources) for group in latent_slots(one, grids, self.template)
            if self.template.stages[group.stage].box_scale is not None
        ]  # fmt: skip
        stages = len(self.subject.spec.stages)
        if len(found) == stages:
            return found
        image = (sample.box_images or (0,))[0]
        offset = int((grids[:image].astype(np.int64).prod(1) // MERGE**2).sum())
        return [box_to_tokens(sample.boxes[0], grids[image]) + offset] * stages

    def spans(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """[B, T] bool each: text of the user turn (the word "user" included, as in the reference), image tokens."""
        token, ids = self.subject.tokenizer.id, batch["tokens"]
        opens, closes = ((ids == token(t)).cumsum(1) for t in (IM_START, IM_END))
        # The system turn comes first: the user's is the second to open.
        inside = (opens == 2) & (ids != token(IM_START)) & (closes == 1) & (batch["segment"] > 0)
        vision = np.isin(ids, [token(t) for t in (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)])
        return {"question": inside & ~vision, "image": (ids == token(IMAGE_PAD)) & (batch["segment"] > 0)}

    # Reading replies -------------------------------------------------------------------------------------------------

    def read(self, i: int, tokens: np.ndarray, live: np.ndarray, latent: np.ndarray) -> "Reply":
        """An item's reply [S], its letter by the protocol's rule for corruption runs, and the word before it."""
        decode, mark = self.subject.tokenizer.decode, MARKS[self.subject.spec.answer][2]
        reply, said = decode(tokens[live]), decode(tokens[spoken(live, latent)])
        marked = mark.findall(reply) if mark else []
        read = f"<answer>{marked[-1].strip()}</answer>" if marked else reply
        rule = rule_name(self.protocol.corruption_extraction, self.benchmark.family)
        letter, right = judge(self.benchmark.rows[i], read, rule)
        return Reply(said, letter, bool(right), word_before(said, mark))

    def replies(self, token: np.ndarray, live: np.ndarray, latent: np.ndarray) -> list[list["Reply"]]:
        """Replies [C][I] of a sweep's arrays [C, I, S]; what is equal under many conditions is read once."""
        found: list[list[Reply]] = [[] for _ in token]
        for i in range(token.shape[1]):
            known: dict[bytes, Reply] = {}
            for c, row in enumerate(found):
                each = (np.where(live[c, i], token[c, i], -1), live[c, i], latent[c, i])
                key = b"".join(part.tobytes() for part in each)
                if key not in known:
                    known[key] = self.read(i, *each)
                row.append(known[key])
        return found

    def sweeper(self, plan: Plan, compute: Compute, **options) -> Sweeper:
        """How these items are rolled out, by their protocol; options: further fields of `Sweeper`."""
        subject, protocol = self.subject, self.protocol
        fields = {"letters": self.place.ids, "opening": self.place.opening, "attention": subject.attention,
                  "weights": subject.weights} | options  # fmt: skip
        decoding = Decoding(protocol.max_new_tokens, subject.stop, protocol.repetition_penalty)
        return Sweeper(subject.graph, subject.params, plan, decoding, compute=compute, **fields)

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Where in the benchmark each of these items is."""
        at = {name: n for n, name in enumerate(self.ids)}
        return np.array([at[name] for name in ids], int)


def numbered(values: Sequence[str]) -> np.ndarray:
    """Equal texts get equal numbers, from 0 in the order of the texts."""
    return np.unique(np.asarray(values).astype(str), return_inverse=True)[1]


class _Lazily(Mapping):
    """The regions of a batch, made when a source asks for one: they need the pictures' grids."""

    def __init__(self, make):
        self.make = make

    def __getitem__(self, name):
        if name not in REGIONS:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name) -> bool:
        return name in REGIONS

    def __iter__(self) -> Iterator[str]:
        return iter(REGIONS)

    def __len__(self) -> int:
        return len(REGIONS)


def template_for(subject: Subject, name: str = "") -> SequenceTemplate | None:
    """The training layout that the config names, else the one that the checkpoint states (None: none is known)."""
    if name and name not in TEMPLATES:
        raise BenchmarkError(f"alignment.template is {name!r}, expected one of {', '.join(TEMPLATES)}")
    if name:
        return TEMPLATES[name]
    try:
        return layout_of(subject.fields, len(subject.spec.stages), f"{subject.name}: config.json")
    except LayoutError as error:
        raise BenchmarkError(f"{error} (or --config.alignment.template)") from error
