"""Evaluates a source of ready-made `Sample`s (a scene generator) beside the published benchmarks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lvr_jax.data.sample import Sample
from lvr_jax.evaluation.rows import BenchmarkError, Row, check_unique


class SampleBenchmark:
    """The face of `Benchmark` over any random-access source of Samples: they pass through as they are.

    Their question already is the full user turn, so that every harness shows the same text.
    """

    family = "samples"

    def __init__(self, name: str, source: Sequence[Sample]):
        if not len(source):
            raise BenchmarkError(f"{name}: no questions found, expected at least one")
        self.name = name
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]

    def counterfactual(self, index: int) -> Sample | None:
        """The item with its target changed, so that the same question has another answer; None where none is made."""
        return self._source.counterfactual(index) if hasattr(self._source, "counterfactual") else None

    def __repr__(self) -> str:
        return f"SampleBenchmark({self.name!r}, {len(self)} questions)"

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Made when first asked for: a generator draws its pictures along with its questions."""
        rows = tuple(Row(id=s.id, question=s.question, letter=s.letter, answer=s.answer, options=s.options,
                         category=s.category) for s in (self._source[i] for i in range(len(self))))
        check_unique((row.id for row in rows), self.name)
        return rows

    def subset(self, indices: Sequence[int]) -> SampleBenchmark:
        return SampleBenchmark(self.name, _Subset(self._source, tuple(indices)))


class _Subset(Sequence[Sample]):
    def __init__(self, source: Sequence[Sample], indices: tuple[int, ...]):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        return self.source[self.indices[index]]

    def counterfactual(self, index: int) -> Sample | None:
        return self.source.counterfactual(self.indices[index]) if hasattr(self.source, "counterfactual") else None
