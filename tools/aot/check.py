"""What does each program of a config take on one slice? Compiles them one at a time, and searches for the most rows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aot import programs, report
from aot.programs import Asked, Program
from aot.slices import Slice, SliceError
from lvr_jax.checkpoints.folder import resolve
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.partitioning import make_mesh

NO_TOKENIZER = "none: compiling reads no text"


@dataclasses.dataclass(frozen=True)
class Check:
    """A config on the mesh of a slice. effort: of the compiler, -1 to 1; 0 is its default."""

    config: ConfigDict
    where: Slice
    mesh: Mesh
    asked: Asked
    effort: float

    @classmethod
    def of(cls, config: ConfigDict, where: Slice, asked: Asked, effort: float) -> "Check":
        """A checkpoint that is not here is replaced by the published shapes of its size."""
        config = config.copy_and_resolve_references()
        if config.init.checkpoint and not resolve(config.init.checkpoint).exists():
            config.init.checkpoint = ""
        config.data.tokenizer = config.data.tokenizer or NO_TOKENIZER
        return cls(config, where, make_mesh(config.mesh, where.devices), asked, effort)

    @property
    def spread(self) -> int:
        """Devices that rows are spread over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def experiment(self, rows: int) -> Experiment:
        config = self.config.copy_and_resolve_references()
        config.rows = rows
        return Experiment.shapes(config, self.mesh)

    def compiled(self, program: Program) -> report.Compiled:
        return report.compiled(program, self.mesh, self.effort)

    def train(self, rows: int) -> Program:
        return programs.train(self.experiment(rows))

    def prefill(self, items: int) -> Program:
        # A sweep knows nothing of training's rows: any number that divides will do.
        here = self.experiment(self.config.accumulate * self.spread)
        return programs.prompts(here, dataclasses.replace(self.asked, items=items))

    def sweep(self, items: int) -> Program:
        first = self.prefill(items)
        done = self.compiled(first)
        if not done.fits:
            raise SliceError(f"topology {self.where.name}: the prefill of {items} items does not fit, so no sweep can")
        prefix = jax.eval_shape(lambda *args: first.jitted(*args, **first.options), *first.args)[0]
        placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        here = self.experiment(self.config.accumulate * self.spread)
        asked = dataclasses.replace(self.asked, items=items)
        return programs.conditions(here, asked, jax.tree.map(placed, prefix, done.shardings[0]))

    def rows(self, what: Sequence[str], search: bool) -> Iterator[dict[str, Any]]:
        """A record of each program, as soon as it is there."""
        kinds: dict[str, tuple[Callable, int, int]] = {
            "train": (self.train, self.config.rows, self.config.accumulate * self.spread),
            "prefill": (self.prefill, self.asked.items, self.spread),
            "sweep": (self.sweep, self.asked.items, self.spread),
        }
        for name in what:
            make, rows, unit = kinds[name]
            program = make(rows)
            of = self.compiled(program)
            most = unit * self._most(make, unit, rows, of) if search else None
            yield report.row(name, program, of, self.where, {
                "config": f"{self.config.name} {self.config.model}", "rows": rows, "most_rows": most,
                "mesh": ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1),
                "accumulate": self.config.accumulate if name == "train" else None, "effort": self.effort,
                "tokens": self.config.data.tokens if name == "train" else self.asked.prompt,
                "conditions": self.asked.conditions if name == "sweep" else None,
            })  # fmt: skip

    def _most(self, make: Callable[[int], Program], unit: int, rows: int, of: report.Compiled) -> int:
        def measure(k: int) -> report.Compiled:
            return of if k * unit == rows else self.compiled(make(k * unit))

        return report.most(measure, self.where.memory, first=max(rows // unit, 1))
