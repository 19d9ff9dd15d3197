"""Evaluates a checkpoint on a benchmark: batches over devices and hosts, resumed where it stopped.

    subject = open_subject("checkpoint")
    protocol = protocols.protocol("clean")
    results = run(subject, load_benchmark("vstar", "data/vstar", protocol), protocol, "vstar.jsonl")

Finished batches lie in `OUTPUT.parts`, a file each; when all are there, OUTPUT appears at once in the benchmark's order
and the parts go. A run that was killed goes on with the batches that are missing, on any number of hosts, so its OUTPUT
is the same, bit for bit. In fp32, tokens and with them all verdicts do not depend on rows a batch or on devices, and
numbers such as letter_logits only up to rounding. In bf16 the two largest logits are often as near as rounding, so
that a reply can change with the shape of its batch, as in every framework; the same --batch gives the same file.

The latent loop is called directly, not through `latents.sweep`: an evaluation has one condition and wants tokens and a
few logits, so the recorded vectors are dropped inside the program, and what is on disk is the results themselves.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.packing import Geometry
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.evaluation import benchmarks
from lvr_jax.evaluation.asked import asked
from lvr_jax.evaluation.batches import ItemBatch, batches, prompt_size
from lvr_jax.evaluation.benchmarks import Benchmark, SampleBenchmark
from lvr_jax.evaluation.content import with_content
from lvr_jax.evaluation.extraction import LIKELIHOOD, rule_name
from lvr_jax.evaluation.generation import Generation
from lvr_jax.evaluation.likelihood import Likelihood
from lvr_jax.evaluation.parts import Parts, place_of
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.results import Header, Result, Results, read_results
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.subject import Subject
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.cell import Cell
from lvr_jax.multihost.hosts import Hosts, digest
from lvr_jax.progress import tqdm

# How an item is answered, by extraction rule; every rule that reads a reply needs one to be generated.
METHODS: Mapping[str, type] = {LIKELIHOOD: Likelihood}
Questions = Benchmark | SampleBenchmark


def load_benchmark(name: str, folder, protocol: Protocol, *, any_count: bool = False, **options) -> Questions:
    """`benchmarks.load` with the prompts and reader's options of a protocol; `options` are the reader's other ones."""
    family = benchmarks.BENCHMARKS[name].family if name in benchmarks.BENCHMARKS else ""
    own = protocol.loader_options(family)
    for option in set(options) & set(own):
        raise BenchmarkError(f"{name}: option {option!r} is a switch of the protocol, expected {family}_{option} there")
    try:
        return benchmarks.load(name, folder, prompts=protocol.prompts, any_count=any_count, **own, **options)
    except DataError:
        raise
    except (TypeError, ValueError) as error:            # how a scene generator refuses a setting
        raise BenchmarkError(f"{name}: {error}") from error


def run(
    subject: Subject,
    benchmark: Questions,
    protocol: Protocol,
    output: str | os.PathLike,
    *,
    rows: int = 8,
    cell: Cell = Cell(),  # noqa: B008
    compute: Compute = Compute(),  # noqa: B008
    programs: int = 4,
    details: Mapping | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Evaluates every item of the benchmark that `output` (or a part of it) does not hold yet; returns all results.

    output: local or gs://; rows: items a batch, filled up to a multiple of the devices that rows are spread over.
    cell: the devices that batches run on, where the subject's parameters are; every process of `cell.hosts` calls this
    and sees the same folder. programs: at most this many are compiled. details: what the header is to say besides, such
    as the benchmark's options. Raises BenchmarkError if `output` holds another evaluation, DataError for bad items.
    """
    if getattr(benchmark, "prompts", protocol.prompts) != protocol.prompts:
        raise BenchmarkError(f"{benchmark.name}: loaded with prompts {benchmark.prompts!r}, protocol {protocol.name}"
                             f" has {protocol.prompts!r}")
    rule = rule_name(protocol.extraction, benchmark.family)
    method = METHODS.get(rule, Generation)(subject, benchmark.rows, protocol, rule, compute)
    hosts = cell.hosts
    header = _header(subject, benchmark, protocol, compute, details or {})
    hosts.same(dataclasses.asdict(header))
    digests = _asked(benchmark, hosts)
    parts = Parts(place_of(output), header, digests, method.follows)
    place = {row.id: n for n, row in enumerate(benchmark.rows)}
    done = set(hosts.broadcast("results", lambda: [place[name] for name in parts.done(benchmark.rows)]))

    worker = _Worker(subject, benchmark, protocol, method, cell, cell.filled(rows))
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 2)) as threads:
        planned = [] if len(done) == len(place) else worker.plan(threads, programs)
        hosts.same({"the sizes of items": digest([[batch.items, str(batch.budget)] for batch in planned])})
        missing = [number for number, batch in enumerate(planned) if not done.issuperset(batch.items)]
        mine = [planned[number] for number in cell.share("batches", lambda: missing)]
        for line in _summary(planned, worker.rows) if mine else ():
            say(line)
        with tqdm(
            total=len(place), initial=len(done), unit="item", desc=benchmark.name,
            disable=not (progress and mine and cell.reports),
        ) as bar, cell.active():  # fmt: skip
            for number, (batch, results) in enumerate(zip(mine, worker.results(threads, mine))):
                fresh = [item for item in batch.items if item not in done]
                if cell.is_writer:
                    parts.write(min(fresh), [dataclasses.replace(result, asked=digests[result.id]) for result in results
                                             if place[result.id] not in done])
                hosts.progress(number)
                bar.update(len(fresh) * cell.count)             # the other cells are about as far
    hosts.wait("batches are finished")
    if hosts.first:
        parts.join(benchmark.rows, lambda items: with_content(benchmark.rows, items))
    hosts.wait("results are written")
    return read_results(parts.output)


def _header(subject: Subject, benchmark, protocol: Protocol, compute: Compute, details: Mapping) -> Header:
    """Everything that results depend on, and nothing else: not rows a batch, devices or the time."""
    stages = {stage.name: int(n) for stage, n in zip(subject.spec.stages, subject.plan(protocol).quota)}
    own = {"system": subject.spec.name, "latents": stages, "pixels": [subject.min_pixels, subject.max_pixels],
           "stop": list(subject.stop), "weights": subject.weights, "dtype": np.dtype(compute.dtype).name}
    return Header(benchmark.name, benchmark.family, subject.name, protocol, details={**own, **details})


def _asked(benchmark: Questions, hosts: Hosts) -> dict[str, str]:
    """Digests of all items by id; each host reads its share of the pictures."""
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 2)) as threads:
        mine = list(threads.map(lambda i: asked(benchmark[i]), range(hosts.index, len(benchmark), hosts.count)))
    found = hosts.gather("what is asked", mine)
    return {row.id: found[i % hosts.count][i // hosts.count] for i, row in enumerate(benchmark.rows)}


# Work ----------------------------------------------------------------------------------------------------------------

def _summary(planned: Sequence[ItemBatch], rows: int) -> Iterator[str]:
    budgets = {batch.budget: 0 for batch in planned}
    for batch in planned:
        budgets[batch.budget] += len(batch.items)
    shown = "; ".join(f"{items} items in {b.tokens} tokens, {b.windows} windows" for b, items in budgets.items())
    yield f"{len(budgets)} program{'s' * (len(budgets) > 1)} of {rows} rows: {shown}"


@dataclasses.dataclass(frozen=True)
class _Worker:
    """From items to results: sizes and pictures in threads, one batch ahead of the device."""

    subject: Subject
    benchmark: Questions
    protocol: Protocol
    method: Generation | Likelihood
    cell: Cell
    rows: int

    @property
    def geometry(self) -> Geometry:
        vision = self.subject.config.vision
        return Geometry(vision.merge, vision.window)

    @property
    def _limits(self) -> dict:
        return {"min_pixels": self.subject.min_pixels, "max_pixels": self.subject.max_pixels,
                "protocol": self.protocol.image_protocol}

    def plan(self, threads: ThreadPoolExecutor, programs: int) -> list[ItemBatch]:
        size = lambda i: prompt_size(  # noqa: E731
            self.benchmark[i], self.subject.tokenizer, self.geometry, **self._limits
        )
        return batches(list(threads.map(size, range(len(self.benchmark)))), self.rows, programs)

    def results(self, threads: ThreadPoolExecutor, planned: Sequence[ItemBatch]) -> Iterator[list[Result]]:
        """While the device runs a batch, the next one's pictures are decoded."""
        coming = [p for batch in planned[:1] for p in self._prompts(threads, batch)]
        for number, batch in enumerate(planned):
            loaded = [prompt.result() for prompt in coming]
            coming = [p for each in planned[number + 1 : number + 2] for p in self._prompts(threads, each)]
            yield self._answers(batch, loaded)

    def _prompts(self, threads: ThreadPoolExecutor, batch: ItemBatch) -> list[Future[tuple[Sample, Example]]]:
        return [threads.submit(self._prompt, i) for i in batch.items]

    def _prompt(self, i: int) -> tuple[Sample, Example]:
        sample = self.benchmark[i]
        return sample, encode_prompt(sample, self.subject.tokenizer, **self._limits)

    def _answers(self, batch: ItemBatch, loaded: Sequence[tuple[Sample, Example]]) -> list[Result]:
        rows = [self.benchmark.rows[i] for i in batch.items]
        inputs = self.method.inputs(rows, [prompt for _, prompt in loaded], batch.budget, self.geometry)
        missing = self.rows - len(rows)                     # filled up with copies of the first, which are dropped
        inputs = {key: np.concatenate([x, np.repeat(x[:1], missing, 0)]) for key, x in inputs.items()}
        out = self.cell.fetch(self.method.run(self.cell.rows(inputs)))
        return self.method.read(rows, [sample.question for sample, _ in loaded],
                                {key: value[: len(rows)] for key, value in out.items()})
