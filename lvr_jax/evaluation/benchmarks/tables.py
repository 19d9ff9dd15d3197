"""Reads the index files of a benchmark: jsonl, CSV and parquet, the last with its images left undecoded."""

from __future__ import annotations

import base64
import csv
import dataclasses
import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lvr_jax.data.sample import Box, ImageSource
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.files.json_io import JsonError, parse_object


def read_jsonl(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", record) for every line that is not blank."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = parse_object(line, where)
            except JsonError as error:
                raise BenchmarkError(str(error)) from None
            yield where, record


def read_csv(path: Path, columns: Sequence[str], aliases: Mapping[str, str]) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", record); columns by their header, values as strings. A byte-order mark is ignored.

    columns: that the header must have; aliases: other names that a header may give them.
    """
    with open(path, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        try:
            reader.fieldnames = [aliases.get(name, name) for name in reader.fieldnames or ()]
            missing = [name for name in columns if name not in reader.fieldnames]
            if missing:
                raise BenchmarkError(f"{path}: no column {', '.join(missing)}, found {', '.join(reader.fieldnames)}")
            for record in reader:
                where = f"{path}:{reader.line_num}"
                if None in record or None in record.values():
                    raise BenchmarkError(f"{where}: row has {'more' if None in record else 'fewer'} cells than the"
                                         f" header, expected {', '.join(reader.fieldnames)}")
                yield where, record
        except UnicodeDecodeError as error:
            raise BenchmarkError(f"{path}: not UTF-8 text (byte {error.start})") from None
        except csv.Error as error:
            raise BenchmarkError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _parquet():
    # pyarrow is an optional extra: most benchmarks also come as files.
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise BenchmarkError("reading parquet needs pyarrow: pip install 'lvr_jax[parquet]'") from None


def _open(path: Path, **options):
    parquet = _parquet()
    try:
        return parquet.ParquetFile(path, **options)
    except (OSError, ValueError) as error:              # pyarrow's own errors derive from these two
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> BenchmarkError:
    return BenchmarkError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})")


def read_parquet(paths: Sequence[Path], columns: Sequence[str], images: Sequence[str]) -> list[tuple[str, dict]]:
    """These text columns of all rows of all shards, as ("file:row", record). Image columns are not touched, but the
    first of them must be there."""
    rows: list[tuple[str, dict]] = []
    for path in paths:
        file = _open(path)
        found = file.schema_arrow.names
        missing = [name for name in (*columns, images[0]) if name not in found]
        if missing:
            raise BenchmarkError(f"{path}: no column {', '.join(missing)}, found {', '.join(found)}")
        try:
            records = file.read(columns=list(columns)).to_pylist()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        rows += [(f"{path}:{number}", record) for number, record in enumerate(records)]
    return rows


@dataclasses.dataclass
class ParquetImages:
    """Pictures kept inside parquet shards, decoded one row at a time.

    A cursor walks forward through each shard's row groups in steps of one row, so that an in-order pass streams a
    file of gigabytes through a few megabytes of memory; going back starts the row group again. `rows[i]` is the
    (shard, row group, row inside it) of item i. An image cell is either a struct with `bytes` (the hub's image
    feature) or a base64 string.
    """

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        self._cursor = None                  # (shard, row group, next row, batches)
        self._lock = threading.Lock()        # grain reads a source from several threads

    def __call__(self, index: int) -> tuple[tuple[ImageSource, ...], tuple[Box, ...]]:
        where = f"{self.paths[self.rows[index][0]]}: item {index}"
        with self._lock:
            cells = self._read(*self.rows[index])
        images = tuple(_image_bytes(cell, f"{where}: {name}") for name, cell in cells.items() if cell is not None)
        if not images:
            raise BenchmarkError(f"{where}: no image in {', '.join(self.columns)}")
        return images, ()

    def reordered(self, order: Sequence[int]) -> ParquetImages:
        """Pictures whose item i is this one's item `order[i]`."""
        return ParquetImages(self.paths, self.columns, tuple(self.rows[place] for place in order))

    def _read(self, shard: int, group: int, row: int) -> dict:
        if self._cursor is None or self._cursor[:2] != (shard, group) or self._cursor[2] > row:
            file = _open(self.paths[shard], memory_map=True)
            columns = [name for name in self.columns if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=1, row_groups=[group], columns=columns)
            self._cursor = (shard, group, 0, batches)
        _, _, at, batches = self._cursor
        self._cursor = None                              # a failed read starts afresh
        try:
            for _ in range(row - at):
                next(batches)
            record = next(batches).to_pylist()[0]
        except (OSError, ValueError) as error:
            raise _unreadable(self.paths[shard], error) from None
        self._cursor = (shard, group, row + 1, batches)
        return record

    def __reduce__(self):
        return ParquetImages, (self.paths, self.columns, self.rows)     # open files do not travel to a worker


def parquet_images(paths: Sequence[Path], columns: Sequence[str]) -> ParquetImages:
    """Pictures for all rows of the shards, in the order of `read_parquet`."""
    places = []
    for shard, path in enumerate(paths):
        metadata = _open(path).metadata
        places += [(shard, group, row) for group in range(metadata.num_row_groups)
                   for row in range(metadata.row_group(group).num_rows)]
    return ParquetImages(tuple(paths), tuple(columns), tuple(places))


def _image_bytes(cell: object, where: str) -> bytes:
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
        return cell["bytes"]
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        try:
            return base64.b64decode(cell, validate=True)
        except ValueError as error:             # binascii.Error, and of letters that are not ASCII
            raise BenchmarkError(f"{where} is not base64 ({error})") from None
    raise BenchmarkError(f"{where} is {type(cell).__name__}, expected image bytes or base64 text")
