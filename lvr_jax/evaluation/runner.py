"""How does a checkpoint get a number on a benchmark? Batches over devices, one line an item, resumed where it stopped.

    subject = open_subject("checkpoint")
    protocol = protocols.protocol("clean")
    results = run(subject, load_benchmark("vstar", "data/vstar", protocol), protocol, "vstar.jsonl")

Finished batches are appended to `OUTPUT.part-K-of-N` (K: this process of N); when all are there, OUTPUT appears at once
in the benchmark's order and the parts go. A run that was killed goes on with the batches that are not complete, so its
OUTPUT is the same, bit for bit. In fp32, tokens and with them all verdicts do not depend on rows a batch or on devices,
and numbers such as letter_logits only up to rounding. In bf16 the two largest logits are often as near as rounding, so
that a reply can change with the shape of its batch, as in every framework; the same --batch gives the same file.

The latent loop is called directly, not through `latents.sweep`: an evaluation has one condition and wants tokens and a
few logits, so the recorded vectors are dropped inside the program, and what is on disk is the results themselves.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.device import batch_sharding
from lvr_jax.data.packing import Geometry
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.evaluation import benchmarks
from lvr_jax.evaluation.batches import ItemBatch, batches, prompt_size
from lvr_jax.evaluation.benchmarks import Benchmark, SampleBenchmark
from lvr_jax.evaluation.content import with_content
from lvr_jax.evaluation.extraction import LIKELIHOOD, rule_name
from lvr_jax.evaluation.generation import Generation
from lvr_jax.evaluation.likelihood import Likelihood
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.evaluation.results import Header, Result, Results, read_results, write_results
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.subject import Subject
from lvr_jax.models.qwen2_5_vl.layers import Compute

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
    mesh: Mesh | None = None,
    compute: Compute = Compute(),  # noqa: B008
    programs: int = 4,
    details: Mapping | None = None,
    process: tuple[int, int] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Evaluates every item of the benchmark that `output` (or a part of it) does not hold yet; returns all results.

    rows: items a batch, filled up to a multiple of the devices that rows are spread over (axes data and fsdp of `mesh`;
    the subject's parameters are on that mesh). programs: at most this many are compiled. details: what the header is
    to say besides, such as the benchmark's options. process: (index, count) of this process: each evaluates its own
    batches on its own devices (`mesh` is of local devices) and needs the same file system; the first one puts the parts
    together. Raises BenchmarkError if `output` holds another evaluation, DataError for bad items.
    """
    if getattr(benchmark, "prompts", protocol.prompts) != protocol.prompts:
        raise BenchmarkError(f"{benchmark.name}: loaded with prompts {benchmark.prompts!r}, protocol {protocol.name}"
                             f" has {protocol.prompts!r}")
    rule = rule_name(protocol.extraction, benchmark.family)
    method = METHODS.get(rule, Generation)(subject, benchmark.rows, protocol, rule, compute)
    output = Path(output)
    index, count = (jax.process_index(), jax.process_count()) if process is None else process
    header = _header(subject, benchmark, protocol, compute, details or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _earlier(output, header, benchmark)

    worker = _Worker(subject, benchmark, protocol, method, mesh, rows + -rows % _shards(mesh))
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 2)) as threads:
        planned = [] if _complete(done, benchmark) else worker.plan(threads, programs)
        mine = [batch for batch in planned[index::count] if any(benchmark.rows[i].id not in done for i in batch.items)]
        for line in _summary(planned, worker.rows) if mine else ():
            say(line)
        if mine:
            own = _part(output, index, count)
            write_results(own, header, read_results(own, torn_tail=True).items if own.exists() else [])
            with open(own, "a", encoding="utf-8") as file, tqdm(
                total=sum(len(batch.items) for batch in planned[index::count]),
                initial=sum(len(batch.items) for batch in planned[index::count] if batch not in mine),
                unit="item", disable=not progress, desc=benchmark.name,
            ) as bar:  # fmt: skip
                for results in worker.results(threads, mine):
                    fresh = [result for result in results if result.id not in done]
                    try:
                        file.write("".join(result.to_line() for result in fresh))
                        file.flush()
                    except OSError as error:                # a full disk does not say whose
                        raise OSError(f"{own}: {error.strerror or error}; what was finished is kept") from error
                    bar.update(len(results))
    if count > 1:
        multihost_utils.sync_global_devices(f"evaluated {output.name}")
    if index == 0:
        _put_together(output, header, benchmark)
    if count > 1:
        multihost_utils.sync_global_devices(f"written {output.name}")
    return read_results(output)


def _header(subject: Subject, benchmark, protocol: Protocol, compute: Compute, details: Mapping) -> Header:
    """Everything that results depend on, and nothing else: not rows a batch, devices or the time."""
    stages = {stage.name: int(n) for stage, n in zip(subject.spec.stages, subject.plan(protocol).quota)}
    own = {"system": subject.spec.name, "latents": stages, "pixels": [subject.min_pixels, subject.max_pixels],
           "stop": list(subject.stop), "weights": subject.weights, "dtype": np.dtype(compute.dtype).name}
    return Header(benchmark.name, benchmark.family, subject.name, protocol, details={**own, **details})


# Files ---------------------------------------------------------------------------------------------------------------

def _part(output: Path, index: int, count: int) -> Path:
    return output.with_name(f"{output.name}.part-{index:03d}-of-{count:03d}")


def _parts(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{output.name}.part-*-of-*[0-9]"))


def _earlier(output: Path, header: Header, benchmark: Questions) -> dict[str, Result]:
    """What is there already, by item. Results of other settings, or of more items, are refused: none is ever lost."""
    done: dict[str, Result] = {}
    asked = {row.id for row in benchmark.rows}
    for path in [*([output] if output.exists() else []), *_parts(output)]:
        found = read_results(path, torn_tail=path != output)
        if found.header != header:
            ours, theirs = (dataclasses.asdict(h) for h in (header, found.header))
            differ = _difference(theirs, ours)
            raise BenchmarkError(f"{path}: holds another evaluation ({differ}), expected another --output")
        if more := [item.id for item in found.items if item.id not in asked]:
            raise BenchmarkError(f"{path}: holds {len(more)} items that this run does not ask for"
                                 f" ({', '.join(more[:3])}), expected another --output (or the larger --limit)")
        done |= {item.id: item for item in found.items}
    return done


def _difference(theirs: Mapping, ours: Mapping) -> str:
    """The first field in which two headers differ."""
    for key in {**theirs, **ours}:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and a != b:
            return f"{key}.{_difference(a, b)}"
        if a != b:
            return f"{key} {a!r}, now {b!r}"
    return "none"


def _complete(done: Mapping[str, Result], benchmark: Questions) -> bool:
    return all(row.id in done for row in benchmark.rows)


def _put_together(output: Path, header: Header, benchmark: Questions) -> None:
    done = _earlier(output, header, benchmark)
    missing = [row.id for row in benchmark.rows if row.id not in done]
    if missing:
        raise BenchmarkError(f"{output}: {len(missing)} items are missing ({', '.join(missing[:3])}), expected every"
                             " process to write its part to the same folder")
    write_results(output, header, with_content(benchmark.rows, [done[row.id] for row in benchmark.rows]))
    for part in _parts(output):
        part.unlink()


# Work ----------------------------------------------------------------------------------------------------------------

def _shards(mesh: Mesh | None) -> int:
    """Devices that rows are spread over."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in ("data", "fsdp") if axis in mesh.shape]))


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
    mesh: Mesh | None
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
        if self.mesh is not None:
            inputs = jax.device_put(inputs, batch_sharding(self.mesh))
        out = jax.device_get(self.method.run(inputs))
        return self.method.read(rows, [sample.question for sample, _ in loaded],
                                {key: value[: len(rows)] for key, value in out.items()})
