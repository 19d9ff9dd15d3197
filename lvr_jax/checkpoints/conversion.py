"""Converts a checkpoint of Hugging Face into one of ours and back, bit for bit and a few tensors at a time.

Both directions walk the name table: read a tensor (embedding and head in blocks of rows), reorder its axes, write it at
its place in the other format. What is in memory at any moment is one piece being made and one being written.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from lvr_jax.checkpoints.adapters import merged
from lvr_jax.checkpoints.errors import CheckpointError, DiskFullError, free_space, size
from lvr_jax.checkpoints.folder import (
    FILES,
    HEADERS,
    INDEX,
    PARAMS,
    building,
    copy_files,
    is_remote,
    list_files,
    mark_complete,
    resolve,
)
from lvr_jax.checkpoints.hugging_face import EMBED, HEAD, HuggingFace, open_hf
from lvr_jax.checkpoints.orbax_io import Index, Pieces, chunk_shape, open_arrays, read, write_pieces
from lvr_jax.checkpoints.ours import Ours, open_ours
from lvr_jax.checkpoints.safetensors_io import (
    Tensor,
    make_header,
    parse_header,
    split_into_shards,
    write_file,
)
from lvr_jax.models.families import leaves, slots
from lvr_jax.models.weight_table import Slot, canonical

SHARD_BYTES = 5 * 10**9             # what transformers splits at

Progress = Callable[[int], None]    # called with the bytes of each piece; may raise to stop the conversion


def _silent(count: int) -> None:
    pass


def compact(x: np.ndarray) -> np.ndarray:
    """A contiguous, aligned copy of a view, in strips of its last axis: four times as fast as NumPy transposes.

    Alignment: the header of a safetensors file may have any length, and its data begin right behind.
    """
    if x.flags.c_contiguous and x.flags.aligned:
        return x
    out = np.empty(x.shape, x.dtype)
    for i in range(0, x.shape[-1], 16):
        out[..., i : i + 16] = x[..., i : i + 16]
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits, NaNs and signed zeros included."""
    return a.dtype == b.dtype and np.array_equal(compact(a).view(np.uint8), compact(b).view(np.uint8))


def _blocks(slot: Slot, dtype: np.dtype) -> Iterator[tuple[int, int]]:
    """Row ranges to take a tensor in: blocks of storage chunks where rows stay rows, all at once otherwise."""
    rows = slot.shape[0]
    step = chunk_shape(slot.shape, dtype.itemsize)[0] if slot.same else rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _place(slot: Slot, start: int, stop: int) -> Index:
    return (slice(start, stop),) if slot.layer is None else (slot.layer, slice(start, stop))


def to_flax(
    hf_dir,
    out_dir,
    *,
    adapter: Any = None,
    dtype: Any = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> HuggingFace:
    """Converts a Hugging Face folder to a folder of ours (see folder.py), which may be gs://.

    adapter: folder of a LoRA adapter, which is merged into the checkpoint.
    dtype: type of all parameters, or None to keep each tensor's own; only then is the way back bit-identical.
    verify: read everything back and compare before the output takes its name.
    Raises CheckpointError or ConfigError for bad input, DiskFullError; nothing is left behind then.
    """
    _refuse_nested(hf_dir, out_dir)
    if adapter is not None:
        _refuse_nested(adapter, out_dir)
    source = open_hf(hf_dir) if adapter is None else merged(open_hf(hf_dir), adapter)
    table = leaves(source.config)
    target = lambda tensor: tensor.dtype if dtype is None else np.dtype(dtype)  # noqa: E731
    exact = bool(source.headers) and all(target(tensor) == tensor.dtype for tensor in source.tensors.values())

    def pieces_of(path: str) -> Pieces:
        members = table[path]
        (first, slot), stacked = members[0], members[0][1].layer is not None
        into = target(source.tensors[first])

        def pieces():
            for name, slot in members:
                tensor = source.tensors[name]
                for start, stop in _blocks(slot, into):
                    piece = tensor.read(start, stop) if slot.same else slot.from_hf(tensor.read())
                    progress(piece.nbytes)
                    yield _place(slot, start, stop), compact(piece.astype(into, copy=False))

        lead = (len(members),) if stacked else ()
        chunk = (1,) * stacked + chunk_shape(slot.shape, into.itemsize)
        return Pieces((*lead, *slot.shape), into, chunk, pieces)

    arrays = {path: pieces_of(path) for path in table}
    need = sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in arrays.values())
    with building(out_dir, overwrite) as folder:
        _require_space(folder, need)
        write_pieces(folder / PARAMS, arrays)
        copy_files([f for f in source.files if exact or f.name != INDEX], source.folder, folder / FILES)
        if exact:
            (folder / HEADERS).mkdir()
            for name, header in source.headers.items():
                (folder / HEADERS / f"{name}.header").write_bytes(header)
        if verify:
            _compare(open_arrays(folder / PARAMS), source, progress)
        mark_complete(folder)
    return source


def _refuse_nested(source, target) -> None:
    """Refuses to write a folder into itself or over one that contains it, which would remove what is being read."""
    if is_remote(source) or is_remote(target):
        same = str(resolve(source)).rstrip("/") == str(resolve(target)).rstrip("/")
    else:
        one, other = Path(resolve(source)).resolve(), Path(resolve(target)).resolve()
        same = one == other or one in other.parents or other in one.parents
    if same:
        raise CheckpointError(f"{target}: is the source itself, or one lies in the other; choose a folder of its own")


def _compare(arrays: dict[str, ts.TensorStore], source: HuggingFace, progress: Progress, exported=False) -> None:
    """Every stored array, taken back to the Hugging Face axes, against the tensor on the disk, in the output's type:
    the tensor's if it was `exported`, the stored array's otherwise."""
    for name, slot in slots(source.config).items():
        tensor = source.tensors[name]
        for start, stop in _blocks(slot, tensor.dtype):
            stored = read(arrays, slot.path, _place(slot, start, stop))
            wanted = tensor.read(start, stop) if slot.same else tensor.read()
            stored = stored if slot.same else slot.to_hf(stored)
            final = wanted.dtype if exported else stored.dtype
            if not same_bits(stored.astype(final, copy=False), wanted.astype(final, copy=False)):
                raise CheckpointError(f"{tensor.file}: {tensor.name} differs from what was written as {slot.path}")
            progress(wanted.nbytes)


def to_hf(
    orbax_dir,
    hf_dir,
    *,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> Ours:
    """Converts a folder of ours to a Hugging Face folder; both may be gs://, and then no disk holds either.

    A checkpoint that came from Hugging Face gets its own files back, byte for byte. One that was trained here, or whose
    type is changed by `dtype`, gets the names of the hub and shards of at most `shard_bytes`; its config.json then
    says what the tensors say (rows, tied, type).
    """
    _refuse_nested(orbax_dir, hf_dir)
    source = open_ours(orbax_dir)
    if is_remote(hf_dir) and verify:
        raise CheckpointError(f"{hf_dir}: only a Hugging Face folder on a local disk can be read back (verify)")
    table = source.tensors
    target = lambda slot: np.dtype(dtype or source.arrays[slot.path].dtype.numpy_dtype)  # noqa: E731
    headers = source.headers
    exact = bool(headers) and all(target(slot) == source.arrays[slot.path].dtype.numpy_dtype for slot in table.values())
    if not exact:
        tensors = [(name, target(slot), slot.hf_shape) for name, slot in table.items()]
        tensors.sort(key=lambda tensor: -tensor[1].itemsize)        # within a file, wide types first keeps all aligned
        shards = split_into_shards(tensors, shard_bytes)
        headers = {name: make_header(shard) for name, shard in shards.items()}
    with building(hf_dir, overwrite) as folder:
        plan = {name: parse_header(header, folder / name) for name, header in headers.items()}
        _require_space(folder, sum(tensor.nbytes for tensors in plan.values() for tensor in tensors))
        copy_files([f for f in list_files(source.files) if exact or f.name != INDEX], source.files, folder)
        if not exact:
            _write_index(folder, shards)
            (folder / "config.json").write_text(json.dumps(_updated(source, target(table[EMBED])), indent=2) + "\n")
        for name, described in plan.items():
            write_file(folder / name, headers[name], _pieces(described, source, table, progress))
        if verify:
            _compare(source.arrays, open_hf(folder), progress, exported=True)
    return source


def _pieces(tensors: list[Tensor], source: Ours, table: dict[str, Slot], progress: Progress) -> Iterator[np.ndarray]:
    for tensor in tensors:
        name = canonical(tensor.name)
        slot = table.get(name) or table[EMBED if name == HEAD else name]      # a redundant head of a tied checkpoint
        for start, stop in _blocks(slot, tensor.dtype):
            x = read(source.arrays, slot.path, _place(slot, start, stop))
            progress(x.nbytes)
            yield compact((x if slot.same else slot.to_hf(x)).astype(tensor.dtype, copy=False))


def _write_index(folder, shards: dict[str, list]) -> None:
    if len(shards) == 1:
        return
    total = sum(dtype.itemsize * int(np.prod(shape)) for shard in shards.values() for _, dtype, shape in shard)
    weight_map = {name: file for file, shard in shards.items() for name, _, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _updated(source: Ours, dtype: np.dtype) -> dict[str, Any]:
    """config.json after training or a change of type: where it speaks of the tensors, what they are now."""
    text = source.config.text
    now = {"vocab_size": text.vocab, "tie_word_embeddings": text.tied, "torch_dtype": dtype.name, "dtype": dtype.name}

    def correct(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: now.get(key, correct(x) if isinstance(x, dict) else x) for key, x in fields.items()}

    return correct(source.fields)


def _require_space(folder, need: int) -> None:
    if is_remote(folder):
        return
    free = free_space(folder)
    if free < need:
        raise DiskFullError(f"{resolve(folder).parent}: {size(free)} free, the output needs {size(need)}")
