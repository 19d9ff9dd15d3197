"""Reads the headers of safetensors files and writes one tensor by tensor.

A file is eight bytes of header length, a JSON header, and the tensors back to back without holes. The safetensors
library writes a file only from a dict that holds all of its tensors, and it orders and pads the header in its own way;
here a file is read as views of the disk and written piece by piece under any given header, byte for byte.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lvr_jax.checkpoints.errors import CheckpointError
from lvr_jax.files.json_io import parse_object

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
# How the small text begins that Git LFS leaves in a large file's place until the file is fetched.
LFS_POINTER = b"version https://git-lfs"
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `offset` counts from the file's first byte."""

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of the tensor, as a view of the file: its pages are the system's cache, not memory of the process.

        Each call maps its own rows, so that they are let go with the last reference.
        """
        rows, *rest = self.shape
        stop = rows if stop is None else stop
        skipped = self.offset + start * math.prod(rest) * self.dtype.itemsize
        return np.memmap(self.file, self.dtype, "r", offset=skipped, shape=(stop - start, *rest))


def read_header(path: Path) -> bytes:
    """The header as it is in the file, padding included. Raises CheckpointError if the file is cut short."""
    total = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start == LFS_POINTER[:8]:
            raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; fetch them (git lfs pull)")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else total
        if length > total - 8:
            raise CheckpointError(f"{path}: {total} bytes, its header alone promises {length + 8}; truncated?")
        return file.read(length)


def parse_header(header: bytes, path: Path, total: int | None = None) -> list[Tensor]:
    """Tensors in the order of the file; with `total`, the file's size is checked against what the header promises."""
    try:
        entries = parse_object(header, path)
        entries.pop("__metadata__", None)
        described: list[tuple[Any, ...]] = [(*_whole(e["data_offsets"], 2), name, str(e["dtype"]), _whole(e["shape"]))
                     for name, e in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the header is not that of a safetensors file ({error})") from error
    tensors, end, data = [], 0, 8 + len(header)
    for start, stop, name, dtype, shape in sorted(described):
        if dtype not in DTYPES:
            raise CheckpointError(f"{path}: tensor {name} is {dtype}, expected one of {', '.join(DTYPES)} (a quantised "
                                  "checkpoint? take the release that it was made from)")
        tensor = Tensor(path, name, DTYPES[dtype], shape, data + start)
        if start != end or stop - start != tensor.nbytes:
            raise CheckpointError(
                f"{path}: tensor {name} has bytes {start} to {stop}, expected {tensor.nbytes} bytes from {end}"
            )
        tensors.append(tensor)
        end = stop
    if total is not None and total != data + end:
        raise CheckpointError(f"{path}: {total} bytes, its header promises {data + end}; truncated?")
    return tensors


def _whole(numbers: Any, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers from 0, so many; ValueError."""
    sound = isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    if not sound or count not in (None, len(numbers)):
        raise ValueError(f"has {str(numbers)[:40]} for {'whole numbers' if count is None else f'{count} offsets'}")
    return tuple(numbers)


def make_header(tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> bytes:
    """A header as the safetensors library makes it: tensors in the given order, padded to a multiple of 8."""
    entries: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}      # transformers refuses a file without it
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_file(path: Path, header: bytes, pieces: Iterator[np.ndarray]) -> None:
    """Writes a file from consecutive pieces of its tensors, in the header's order, and waits for the disk.

    path: local, or of an object store, which takes the pieces as they come.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        file.flush()
        if "://" not in os.fspath(path):
            os.fsync(file.fileno())


def split_into_shards(
    tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]], limit: int
) -> dict[str, list[tuple[str, np.dtype, tuple[int, ...]]]]:
    """File name -> its tensors: files filled in order up to `limit` bytes, named as transformers names them."""
    shards: list[list] = []
    room = -1
    for tensor in tensors:
        _, dtype, shape = tensor
        need = math.prod(shape) * dtype.itemsize
        if need > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= need
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}
