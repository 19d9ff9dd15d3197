"""Turns item `index` of a source into an example that fits the budget, or into a note that says why not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Protocol

from lvr_jax.data.packing import Budget, BudgetError, Geometry
from lvr_jax.data.sample import DataError, Example, Sample


class SampleSource(Protocol):
    """A grain `RandomAccessDataSource` of samples; a damaged record raises a DataError when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A damaged item, which stands in the stream in place of its example and is counted there."""

    source: str         # name of the source
    index: int          # number of the item in it
    file: str           # the file of records, "" for a generator
    error: str          # class of the DataError
    reason: str         # one line; names the file that is at fault, such as an image


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """An example, laid out, and the budget that it takes."""

    example: Example
    size: Budget


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A source whose items are `Encoded` or `Skipped`. Pickles as well as its source and `encode` do.

    Bad data is any DataError, from the source or from `encode`, and an example that is larger than the budget. Every
    other exception is a fault of the program and goes through.
    """

    source: SampleSource
    name: str
    encode: Callable[[Sample], Example]
    budget: Budget
    geometry: Geometry

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Encoded | Skipped:
        index = int(index)
        try:
            example = self.encode(self.source[index])
            size = self.geometry.size(example)
            if not self.budget.holds(size):
                raise BudgetError(f"example {example.id}: needs {size}, the budget is {self.budget}")
            return Encoded(example, size)
        except DataError as error:
            file = os.fspath(getattr(error, "file", None) or getattr(self.source, "path", None) or "")
            return Skipped(self.name, index, file, type(error).__name__, " ".join(str(error).split()))
