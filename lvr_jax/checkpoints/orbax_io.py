"""Writes and reads arrays with Orbax piece by piece, never whole in memory.

Orbax lets a leaf type bring its own TypeHandler, so a stacked parameter can be written layer by layer while Orbax
still does everything else: names, tree metadata, atomic commit. Every parameter becomes a plain zarr array
(`use_ocdbt=False`), whose chunks are pieces of a layer. Measured on a 3B shape (orbax 0.12.8, tensorstore 0.1.86):
OCDBT makes as many files, for each write is its own commit, takes twice as long, and has to merge its B-tree at the
end. What is written here is an ordinary Orbax checkpoint: `ocp.PyTreeCheckpointer().restore(folder)` reads it, under
any sharding.
"""

import contextlib
import dataclasses
import inspect
import logging as standard_logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from etils import epath

from lvr_jax.checkpoints.errors import CheckpointError
from lvr_jax.checkpoints.finite import finite
from lvr_jax.files.json_io import JsonError, read_object

# Small enough that a process that needs a slice of a layer reads little more than it, large enough for object storage.
CHUNK_BYTES = 32 * 2**20

Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """An array to be written: `chunk` is its storage shape, `pieces()` yields (index, values) that cover it once."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    pieces: Callable[[], Iterator[tuple[Index, np.ndarray]]]


def chunk_shape(layer: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Rows of one layer's array in equal parts of at most CHUNK_BYTES."""
    parts = math.ceil(math.prod(layer) * itemsize / CHUNK_BYTES)
    return (math.ceil(layer[0] / parts), *layer[1:])


def _kvstore(path: epath.Path) -> dict[str, Any]:
    text = os.fspath(path)
    if text.startswith("gs://"):
        bucket, _, key = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key + "/"}
    # `building` waits for the disk once, at the end, for all files.
    return {"driver": "file", "path": text + "/", "file_io_sync": False}


class _PieceHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Pieces` and reads any stored array as an open TensorStore; restored plainly they are NumPy arrays."""

    async def serialize(self, values, infos, args=None):
        for value, info in zip(values, infos):
            await info.await_path_creation()
            metadata = {"shape": value.shape, "chunks": value.chunk, "compressor": None}
            spec = {
                "driver": "zarr",
                "kvstore": _kvstore(info.path),
                "dtype": value.dtype.name,
                "metadata": metadata,
                "store_data_equal_to_fill_value": True,     # so that a missing chunk is an error, as Orbax has it
            }
            store = await ts.open(spec, create=True, context=info.ts_context)
            pending = None
            try:
                for index, piece in value.pieces():         # the next piece is made while the last one is written
                    if pending is not None:
                        await pending
                    pending = store[index].write(piece)
            finally:
                if pending is not None:
                    await pending
        return []

    async def deserialize(self, infos, args=None):
        stores = []
        for info in infos:
            kvstore = _kvstore(info.path)
            if info.is_ocdbt_checkpoint:
                kvstore = {"driver": "ocdbt", "base": _kvstore(info.parent_dir), "path": info.name + "/"}
            spec = {
                "driver": "zarr3" if info.use_zarr3 else "zarr",
                "kvstore": kvstore,
                "fill_missing_data_reads": not info.raise_array_data_missing_error,
            }
            stores.append(await ts.open(spec, open=True, context=info.ts_context))
        return stores


def _checkpointer() -> ocp.Checkpointer:
    registry = ocp.type_handlers.create_type_handler_registry((Pieces, _PieceHandler()))
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    )


def nested(flat: dict[str, Any]) -> dict:
    """Turns paths into nested dicts: {"text/blocks/q": x} -> {"text": {"blocks": {"q": x}}}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def flat(tree: dict, is_leaf=None) -> dict[str, Any]:
    """Turns nested dicts into paths, the inverse of `nested`."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in found}


def write_pieces(folder: epath.Path, arrays: dict[str, Pieces]) -> None:
    """Writes an Orbax checkpoint of arrays given by path, one piece after the other, in the given order."""
    hush_threads()
    _checkpointer().save(folder, args=ocp.args.PyTreeSave(nested(arrays)))


def stored(folder: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array of an Orbax checkpoint, by path. Raises CheckpointError if it is incomplete."""
    if not (folder / "_METADATA").exists():
        raise CheckpointError(f"{folder}: no _METADATA; expected a complete Orbax checkpoint (half-written?)")
    if not (folder / "manifest.ocdbt").exists():
        _refuse_headless(folder)
    with _damage_is_one_line(folder):
        tree = ocp.PyTreeCheckpointer().metadata(folder).item_metadata.tree
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat(tree).items()}


def hush_threads() -> None:
    """Silences tracebacks that threads of Orbax and TensorStore print; the error itself is raised and reported."""
    logging.get_absl_logger().addFilter(_is_no_traceback_of_orbax)
    standard_logging.getLogger("asyncio").addFilter(_is_no_task_of_orbax)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _without_late_reads_and_writes


def _is_no_traceback_of_orbax(record) -> bool:
    """Orbax's threads print the traceback of what they then hand on (orbax 0.12.8)."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_no_task_of_orbax(record) -> bool:
    """Of several reads or writes that fail Orbax raises the first; asyncio prints each of the others when it is
    forgotten, some after the last line of a program."""
    if "exception was never retrieved" not in record.getMessage() or not record.exc_info:
        return True
    raised_in = traceback.walk_tb(record.exc_info[2])
    return not any("orbax" in frame.f_code.co_filename for frame, _ in raised_in)


def _without_late_reads_and_writes(unraisable) -> None:
    """What ends after another part has failed finds Orbax's event loop closed, and TensorStore's threads print each of
    them (tensorstore 0.1.86); a read of Orbax that is still waiting then makes an error of being forgotten (orbax
    0.12.8). The first failure is raised."""
    late = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    forgotten = inspect.iscoroutine(unraisable.object) and "orbax" in unraisable.object.cr_code.co_filename
    if not (late or forgotten):
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _damage_is_one_line(folder: epath.Path) -> Iterator[None]:
    """Orbax and TensorStore raise whatever a missing or damaged file leads them to (KeyError, ValueError, ...)."""
    hush_threads()
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: damaged Orbax checkpoint ({type(error).__name__}: {said[:200]})") from error


def open_arrays(folder: epath.Path) -> dict[str, ts.TensorStore]:
    """Every array of an Orbax checkpoint, opened and not read, by path: whoever saved it, in whichever layout."""
    lazily = nested({path: ocp.RestoreArgs(restore_type=Pieces) for path in stored(folder)})
    with _damage_is_one_line(folder):
        return flat(_checkpointer().restore(folder, args=ocp.args.PyTreeRestore(restore_args=lazily)))


def _refuse_headless(folder: epath.Path) -> None:
    """Raises CheckpointError unless every array that _METADATA names has a readable description of its own.

    Orbax would find out as well; but its threads go on after it has raised, and print tracebacks behind the message.
    """
    try:
        named = read_object(folder / "_METADATA")["tree_metadata"].values()
        names = [".".join(str(key["key"]) for key in entry["key_metadata"]) for entry in named]
        for name in names:
            new = folder / name / "zarr.json"
            read_object(new if new.exists() else folder / name / ".zarray")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: array {name} is missing or has lost its description ({error.filename})"
                              ) from error  # fmt: skip
    except JsonError as error:
        raise CheckpointError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / '_METADATA'}: names no arrays, expected those of an Orbax checkpoint"
                              ) from error  # fmt: skip


def read(arrays: dict[str, ts.TensorStore], path: str, index: Index) -> np.ndarray:
    """A piece of an open array. Raises CheckpointError if a part of it is missing or cut short."""
    try:
        return arrays[path][index].read().result()
    except ValueError as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{arrays[path].kvstore.path}: damaged, {path} cannot be read ({text[:200]})") from error


def read_arrays(folder: epath.Path, targets: dict[str, jax.ShapeDtypeStruct]) -> dict:
    """Reads an Orbax checkpoint into the given types and shardings; each process reads what its devices hold."""
    arrays = open_arrays(folder)

    def place(path: str, target: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(
            target.shape,
            target.sharding,
            lambda index: finite(
                read(arrays, path, index).astype(target.dtype, copy=False),
                f"{folder}: {path}", [cut.start or 0 for cut in index],
            ),
            dtype=target.dtype,
        )

    return nested({path: place(path, target) for path, target in targets.items()})


def write_arrays(folder: epath.Path, params: dict) -> None:
    """Saves arrays that are in memory, sharded or not; in a multi-process run every process calls this."""
    hush_threads()
    ocp.PyTreeCheckpointer().save(folder, args=ocp.args.PyTreeSave(params))
