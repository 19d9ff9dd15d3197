"""Reads what a checkpoint's image processor does: its pixel limits, and that it does nothing else than we do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lvr_jax.checkpoints.folder import read_json
from lvr_jax.data.images import QWEN_PIXELS
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.files.json_io import kind

PLAIN, NESTED = "preprocessor_config.json", "processor_config.json"
_LIMIT = 2**31


def preprocessor_fields(folder) -> tuple[dict[str, Any], str]:
    """The image processor's fields and the file that has them: transformers 5 keeps them inside processor_config.json.

    The file of its own has the last word where both are there, as in transformers. No file: no fields.
    """
    if (folder / PLAIN).exists():
        return read_json(folder / PLAIN), os.fspath(folder / PLAIN)
    if (folder / NESTED).exists():
        where = os.fspath(folder / NESTED)
        fields = read_json(folder / NESTED).get("image_processor", {})
        if not isinstance(fields, Mapping):
            raise BenchmarkError(f"{where}: image_processor is {kind(fields)}, expected an object")
        return dict(fields), where
    return {}, os.fspath(folder / PLAIN)


def pixel_limits(
    fields: Mapping[str, Any], where: str, required: Mapping[str, Any]
) -> tuple[int, int, tuple[str, ...]]:
    """Area limits of an image processor, by either naming, and a note where it has none.

    required: fields that the network takes for granted, and their values (models.interface.Family.preprocessor).
    Raises BenchmarkError where they are no limits, and where the processor cuts or normalises pictures otherwise.
    """
    size = fields.get("size") or {}
    if not isinstance(size, Mapping):
        raise BenchmarkError(f"{where}: size is {kind(size)}, expected an object")
    found = []
    for plain, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        given = (fields.get(plain), size.get(plain), size.get(edge))
        found.append(next((x for x in given if x is not None), None))
    limits = [default if given is None else given for given, default in zip(found, QWEN_PIXELS)]
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in limits)
    if not whole or not 0 < limits[0] <= limits[1] <= _LIMIT:
        raise BenchmarkError(f"{where}: has pixel limits {limits[0]!r} to {limits[1]!r}, expected whole numbers,"
                             f" 0 < min <= max <= {_LIMIT}")
    for name, fixed in required.items():
        value = fields.get(name, fixed)
        if not _equal(value, fixed):
            raise BenchmarkError(f"{where}: {name} is {value!r}, expected {fixed!r}, as the network needs")
    missing = [name for name, x in zip(("min_pixels", "max_pixels"), found) if x is None]
    note = f"{where}: no pixel limits, taken: {limits[0]} to {limits[1]} (those of Qwen2.5-VL)"
    return limits[0], limits[1], (note,) if missing else ()


def _equal(value: Any, fixed: float | tuple[float, ...]) -> bool:
    if isinstance(fixed, tuple):
        return isinstance(value, list | tuple) and len(value) == len(fixed) and all(map(_equal, value, fixed))
    # files hold fp32 or fp64 roundings
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value - fixed) <= 1e-6 * abs(fixed)
