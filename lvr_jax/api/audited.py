"""Audits checkpoints from Python: `tools/prism.py` with settings as arguments and tables as records."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvr_jax.api.tables import TABLES, of_report
from lvr_jax.files.shipped import CONFIGS
from lvr_jax.prism import experiment


def audit(
    checkpoint: str | Sequence[str], benchmark: str, data: str | None = None, *, workdir: str | None = None,
    light: bool = False, progress: bool = False, **settings: Any,
) -> Audit:  # fmt: skip
    """Audits one or several checkpoints on a benchmark.

        audit = lvr_jax.audit("LVR-7B", "vstar", "data/vstar")
        audit.verdict["kind"]; pandas.DataFrame(audit.table("conditions")); audit.report("out")

    benchmark: a name of evaluation.benchmarks, or "digit_search" or "rotation", which are generated; data: where it was
        downloaded to
    workdir: keeps what is measured, so that the same audit goes on where it stopped; None: a temporary folder
    light: seven conditions and no attention, patching and sensitivity (configs/prism.py:light)
    settings: fields of configs/prism.py: limit=50, options={"size": 100}, conditions={"names": ["zero", "donor"]}
    Raises one of prism.experiment.BAD_INPUT, one line.
    """
    config = _config("light" if light else "")
    if not isinstance(checkpoint, str | Path | list | tuple):
        raise experiment.PrismError(f"checkpoint is {checkpoint!r}, expected a folder or a list of them")
    if workdir is not None and not (isinstance(workdir, str | Path) and str(workdir)):
        raise experiment.PrismError(f"workdir is {workdir!r}, expected a folder, or None for a temporary one")
    folders = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    asked = {"checkpoint": [str(each) for each in folders], "benchmark": benchmark, "folder": str(data or "")}
    _set(config, {**asked, **settings})
    held = tempfile.TemporaryDirectory(prefix="lvr_jax_audit_") if workdir is None else None
    place = held.name if held else workdir
    return Audit(experiment.audited(config, place, progress=progress), held)


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """A finished audit. `analyses` holds all of it, a dict of plain values a checkpoint, as report.json does."""

    _found: experiment.Audited
    _folder: tempfile.TemporaryDirectory | None = None      # lives as long as this

    def __repr__(self) -> str:
        return f"Audit({', '.join(self.checkpoints)}; tables {', '.join(self.tables)})"

    @property
    def analyses(self) -> list[dict]:
        return list(self._found.analyses)

    @property
    def checkpoints(self) -> list[str]:
        """The names of the checkpoints, in order."""
        return [analysis["name"] for analysis in self.analyses]

    @property
    def verdict(self) -> dict | None:
        """The first checkpoint's verdict: kind, sentences and the intervals behind them."""
        return self.analyses[0]["verdict"]

    @property
    def tables(self) -> list[str]:
        """The names that `table` takes."""
        return [*TABLES, *dict.fromkeys(name for a in self.analyses for name in of_report(a))]

    def table(self, name: str) -> list[dict]:
        """Records of one table, for `pandas.DataFrame`; where there are several checkpoints, of all of them.

        conditions: each condition against the clean pass; answers: each item under each condition; the others are those
        of the report, as text. Raises PrismError for another name.
        """
        if name not in self.tables:
            raise experiment.PrismError(f"table {name!r} does not exist, expected one of {', '.join(self.tables)}")
        return [{"checkpoint": a["name"], **record} for a in self.analyses
                for record in (TABLES[name](a) if name in TABLES else of_report(a).get(name, []))]  # fmt: skip

    def report(self, folder: str) -> Path:
        """Writes report.html, figures and tables into a folder; returns the page."""
        return Path(self._found.report(folder))


def _config(which: str):
    """configs/prism.py, made for this argument."""
    found = importlib.util.spec_from_file_location("lvr_jax_prism_config", CONFIGS / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.get_config(which)


def _set(config, given: Mapping[str, Any], where: str = "") -> None:
    """Sets fields by name, nested ones by dicts; lists and dicts become the config's text where it has a text."""
    for name, value in given.items():
        field = f"{where}{name}"
        if name not in config:
            known = ", ".join(sorted(config))
            raise experiment.PrismError(f"{field}: there is no such setting, expected one of {known}")
        if hasattr(config[name], "items"):
            if not isinstance(value, Mapping):
                known = ", ".join(sorted(config[name]))
                raise experiment.PrismError(f"{field} is {value!r}, expected a dict of {known}")
            _set(config[name], value, f"{field}.")
            continue
        if isinstance(config[name], str) and isinstance(value, Mapping):
            value = ", ".join(f"{key}={each!r}" for key, each in value.items())
        elif isinstance(config[name], str) and isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        elif isinstance(config[name], tuple) and isinstance(value, list):
            value = tuple(value)
        try:
            config[name] = value
        except (TypeError, ValueError) as error:
            raise experiment.PrismError(f"{field} is {value!r}: {' '.join(str(error).split())}") from None
