"""The benchmarks that there are, loaded by name."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.rotation_scenes import RotationAnalogies
from lvr_jax.evaluation.benchmarks import blink, hrbench, jsonl, mme_realworld, mmvp, visual_cot, visualpuzzles, vstar
from lvr_jax.evaluation.benchmarks.benchmark import Benchmark, Files, Pictures, PixelBoxedFiles
from lvr_jax.evaluation.benchmarks.samples import SampleBenchmark
from lvr_jax.evaluation.rows import BenchmarkError, Row

__all__ = ["BENCHMARKS", "SCENES", "Benchmark", "BenchmarkError", "Files", "Pictures", "PixelBoxedFiles", "Row",
           "SampleBenchmark", "load"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A benchmark by name: its family (which prompts and rules apply), its reader, and the reader's own options."""

    family: str
    read: Callable
    options: tuple[str, ...] = ()


BENCHMARKS: dict[str, Entry] = {
    "vstar": Entry("vstar", vstar.read, ("boxes",)),
    "mmvp": Entry("mmvp", mmvp.read, ("order", "key")),
    "blink": Entry("blink", blink.read, ("tasks",)),
    "blink14": Entry("blink", functools.partial(blink.read, tasks=blink.ALL_TASKS)),
    "hrbench4k": Entry("hrbench", functools.partial(hrbench.read, resolution="4k")),
    "hrbench8k": Entry("hrbench", functools.partial(hrbench.read, resolution="8k")),
    "mme_realworld_lite": Entry("mme_realworld", mme_realworld.read),
    "visualpuzzles": Entry("visualpuzzles", visualpuzzles.read),
    "visual_cot": Entry("visual_cot", visual_cot.read, ("sources",)),
    "jsonl": Entry("jsonl", jsonl.read),
}


# Generated benchmarks: nothing to download. Options are the fields of these classes.
SCENES: dict[str, type] = {"digit_search": DigitSearch, "rotation": RotationAnalogies}
SCENE_DEFAULTS = {"size": 500, "split": "test"}


def load(name: str, folder: str | os.PathLike | None = None, *, prompts: str = "clean", any_count: bool = False,
         **options) -> Benchmark | SampleBenchmark:
    """Reads a downloaded benchmark; images stay on disk until an item is asked for. Or sets up a generated one.

    folder: where the benchmark was downloaded to (the file itself for jsonl); none for a generated one.
    prompts: the harness whose prompt template makes the question (`prompts.HARNESSES`).
    any_count: accept another number of questions than published (a subset); by default that is an error.
    options: the reader's own, by benchmark: vstar boxes; mmvp order, key; blink tasks; visual_cot sources; the
    fields of a scene class.
    Raises BenchmarkError, one line that names file, field and what was expected.
    """
    if name in SCENES:
        return _scenes(name, folder, options)
    if name not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark {name!r}, expected one of {', '.join((*BENCHMARKS, *SCENES))}")
    if folder is None:
        raise BenchmarkError(f"{name}: no folder given, expected where it was downloaded to")
    entry = BENCHMARKS[name]
    _check_options(name, options, entry.options)
    rows, pictures = entry.read(folder, name, any_count, **options)
    return Benchmark(name, entry.family, rows, pictures, prompts=prompts)


def _scenes(name: str, folder: str | os.PathLike | None, options: dict) -> SampleBenchmark:
    if folder is not None:
        raise BenchmarkError(f"{name}: folder is {str(folder)!r}, expected none: its pictures are generated")
    _check_options(name, options, [field.name for field in dataclasses.fields(SCENES[name])])
    return SampleBenchmark(name, SCENES[name](**(SCENE_DEFAULTS | options)))


def _check_options(name: str, options: dict, known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise BenchmarkError(f"{name}: no option {option!r}, expected {', '.join(known) or 'none'}")
