"""Compiles the programs of a config for one slice, one at a time, and searches for the most rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aot import programs, report
from aot.programs import Asked, Program
from aot.slices import Slice, SliceError
from lvr_jax.checkpoints.folder import resolve
from lvr_jax.models import compiler_options
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.partitioning import make_mesh

NO_TOKENIZER = "none: compiling reads no text"
OF_ITEMS = {
    "prefill": programs.prefill, "evaluate": programs.evaluate, "taught": programs.taught, "free": programs.free,
}  # fmt: skip
PROGRAMS = ("train", "sweep", *OF_ITEMS)


@dataclasses.dataclass(frozen=True)
class Check:
    """A config on the mesh of a slice. effort: of the compiler, -1 to 1; 0 is its default. options: of the compiler,
    tried instead of those that a run has."""

    config: ConfigDict
    where: Slice
    mesh: Mesh
    asked: Asked
    effort: float
    options: Mapping[str, Any]

    @classmethod
    def of(cls, config: ConfigDict, where: Slice, asked: Asked, effort: float, options: Mapping[str, Any]) -> "Check":
        """A checkpoint that is not here is replaced by the published shapes of its size."""
        config = config.copy_and_resolve_references()
        if config.init.checkpoint and not resolve(config.init.checkpoint).exists():
            config.init.checkpoint = ""
        config.data.tokenizer = config.data.tokenizer or NO_TOKENIZER
        return cls(config, where, make_mesh(config.mesh, where.devices), asked, effort, options)

    @property
    def spread(self) -> int:
        """Devices that rows are spread over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def experiment(self, rows: int) -> Experiment:
        config = self.config.copy_and_resolve_references()
        config.rows = rows
        return Experiment.shapes(config, self.mesh)

    def compiled(self, program: Program) -> report.Compiled:
        return report.compiled(program, self.mesh, self.effort, self.options)

    def train(self, rows: int) -> Program:
        return programs.train(self.experiment(rows))

    def of_items(self, make: Callable[..., Program], items: int, *more) -> Program:
        """A program over items, which training's rows do not enter: its experiment has the fewest that divide."""
        here = self.experiment(self.config.accumulate * self.spread)
        return make(here, dataclasses.replace(self.asked, items=items), *more)

    def sweep(self, items: int) -> Program:
        first = self.of_items(programs.prefill, items)
        done = self.compiled(first)
        if not done.fits:
            raise SliceError(f"topology {self.where.name}: the prefill of {items} items does not fit, so no sweep can")
        prefix = first.jitted.eval_shape(*first.args, **first.options)[0]
        placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        return self.of_items(programs.sweep, items, jax.tree.map(placed, prefix, done.shardings[0]))

    def rows(self, what: Sequence[str], search: bool) -> Iterator[dict[str, Any]]:
        """A record of each program, as soon as it is there."""
        for name in what:
            if name == "train":
                make, rows, unit = self.train, self.config.rows, self.config.accumulate * self.spread
            else:
                make = self.sweep if name == "sweep" else functools.partial(self.of_items, OF_ITEMS[name])
                rows, unit = self.asked.items, self.spread
            program = make(rows)
            of = self.compiled(program)
            most = unit * self._most(make, unit, rows, of) if search else None
            yield report.row(name, program, of, self.where, {
                "config": f"{self.config.name} {self.config.model}", "rows": rows, "most_rows": most,
                "mesh": ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1),
                "accumulate": self.config.accumulate if name == "train" else None, "effort": self.effort,
                "tokens": self.config.data.tokens if name == "train" else self.asked.prompt,
                "conditions": self.asked.conditions if name == "sweep" else None,
                "options": compiler_options.of_mesh(self.mesh) | dict(self.options),
            })  # fmt: skip

    def _most(self, make: Callable[[int], Program], unit: int, rows: int, of: report.Compiled) -> int:
        def measure(k: int) -> report.Compiled:
            return of if k * unit == rows else self.compiled(make(k * unit))

        return report.most(measure, self.where.memory, first=max(rows // unit, 1))
