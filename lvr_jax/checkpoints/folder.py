"""Says what a checkpoint folder of ours holds, and makes it appear all at once or not at all.

    params/          the parameters, an ordinary Orbax checkpoint
    hf/              config.json, tokenizer, preprocessor, chat template: the files around the weights, bit for bit
    safetensors/     headers of the original shards, if the weights are still theirs: enough to write them again exactly
    lvr_jax.json     written last; a folder without it is half-written

Locally a folder is built beside its place as NAME.incomplete and renamed; only a killed process leaves that name
behind, and the next run removes it. Object storage (gs://) has no rename, so there the folder is built in place and
counts as complete once lvr_jax.json is there (a Hugging Face folder: once .lvr_jax-unfinished is gone); what a killed
run left is replaced with overwrite. Tested against a local object store, never on a real bucket.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from lvr_jax.checkpoints.errors import CheckpointError, disk_full_is_one_line
from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.marked import remove_marked
from lvr_jax.files.names import packaged

MARKER, PARAMS, FILES, HEADERS = "lvr_jax.json", "params", "hf", "safetensors"
UNFINISHED = ".lvr_jax-unfinished"          # says that a folder under a temporary name is this program's own
FORMAT = 1
TEMPLATES = "additional_chat_templates"      # the one subfolder that transformers keeps beside the weights
INDEX = "model.safetensors.index.json"


def resolve(folder: str | os.PathLike) -> epath.Path:
    """The absolute path of a folder; gs:// paths and the packaged checkpoints (lvr_jax/assets/...) as they are."""
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder) or "\0" in str(folder):
        raise CheckpointError(f"checkpoint is {folder!r}, expected the path of a folder")
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:          # a name of bytes that are no text, which TensorStore cannot take
        raise CheckpointError(f"checkpoint is {os.fspath(folder)!r}, expected a path in UTF-8") from None
    text = packaged(folder)
    if "://" in text and not re.match("gs://[^/]", text):
        raise CheckpointError(f"checkpoint is {text!r}, expected a local path or gs://BUCKET/...")
    return epath.Path(text if is_remote(text) else os.path.abspath(text))


def is_remote(folder) -> bool:
    """Whether a path names a store such as gs://."""
    return "://" in os.fspath(folder)


def read_json(path: epath.Path) -> dict:
    """Reads a JSON object of a checkpoint. Raises CheckpointError if the file is missing or none."""
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except JsonError as error:
        raise CheckpointError(str(error)) from error


def is_ours(folder: epath.Path) -> bool:
    """Whether this is a complete folder of ours; a half-written one raises CheckpointError."""
    if (folder / MARKER).exists():
        version = read_json(folder / MARKER).get("format")
        if version != FORMAT:
            raise CheckpointError(f"{folder / MARKER}: format is {version!r}, expected {FORMAT}")
        return True
    if any(folder.glob(f"{PARAMS}*")) or folder.name.endswith(".incomplete"):      # Orbax, too, has a temporary name
        raise CheckpointError(f"{folder}: half-written checkpoint, {MARKER} is missing; convert or save it again")
    return False


def mark_complete(folder: epath.Path) -> None:
    """Writes the file that says that a folder of ours is complete; it is written last."""
    (folder / MARKER).write_text(json.dumps({"format": FORMAT}) + "\n")


def copy_files(names: Iterable[Path], source, target) -> None:
    """Copies files, given relative to `source`, bit for bit."""
    source, target = epath.Path(source), epath.Path(target)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).copy(target / name)


def list_files(folder) -> list[Path]:
    """The files of a folder, relative to it: its own and its chat templates', no deeper."""
    folder = epath.Path(folder)
    entries = [path for place in (folder, folder / TEMPLATES) if place.is_dir() for path in place.iterdir()]
    return sorted(Path(path.relative_to(folder)) for path in entries if not path.is_dir() and path.name != UNFINISHED)


def workplace(final: str | os.PathLike) -> epath.Path:
    """Where `building` fills the folder before it takes its name."""
    place = resolve(final)
    return place if is_remote(place) else place.parent / f"{place.name}.incomplete"


def refuse_existing(final: epath.Path, overwrite: bool) -> None:
    """Raises CheckpointError if something stands in the way of a checkpoint."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{final} exists; choose another name, or replace it with --overwrite (overwrite=True)")
    if not ((final / MARKER).exists() or (final / "config.json").exists() or _is_leftover(final)):
        raise CheckpointError(f"{final} exists and is no checkpoint; only a checkpoint can be overwritten")


def _is_leftover(final: epath.Path) -> bool:
    """Whether a killed run wrote part of a checkpoint in place: it says so, or has the folders of one and no more."""
    names = [path.name for path in final.iterdir()] if is_remote(final) else []
    ours = [name in (FILES, HEADERS) or name.split(".")[0] == PARAMS for name in names]
    return UNFINISHED in names or (bool(ours) and all(ours))


@contextlib.contextmanager
def building(final: str | os.PathLike, overwrite: bool = False) -> Iterator[epath.Path]:
    """Yields the folder to fill; it takes its final name when the block ends, and is removed if the block raises."""
    place = resolve(final)
    refuse_existing(place, overwrite)
    with disk_full_is_one_line(place.parent):
        with (_in_place if is_remote(place) else _beside)(place) as folder:
            yield folder


@contextlib.contextmanager
def _in_place(final: epath.Path) -> Iterator[epath.Path]:
    if final.exists():
        final.rmtree()
    try:
        final.mkdir(parents=True)
        (final / UNFINISHED).write_text("")
        yield final
        (final / UNFINISHED).unlink()
    except BaseException:
        final.rmtree(missing_ok=True)
        raise


@contextlib.contextmanager
def _beside(final: epath.Path) -> Iterator[epath.Path]:
    temporary = workplace(final)
    for name in (temporary, _aside(final)):
        _refuse_foreign(name)
    missing_parents = [parent for parent in final.parents if not parent.exists()]
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _claimed(temporary):
            try:
                yield temporary
                _sync(temporary)
                _take_name(temporary, final)
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_marked(temporary, UNFINISHED)
                raise
    except BaseException:
        for parent in missing_parents:
            parent.rmdir()
        raise


@contextlib.contextmanager
def _claimed(temporary: epath.Path) -> Iterator[None]:
    """A fresh folder under an exclusive lock, which dies with the process: a dead run's leftovers can be told from a
    live run's work."""
    if temporary.exists():
        with _locked(temporary):
            remove_marked(temporary, UNFINISHED)
    temporary.mkdir()
    (temporary / UNFINISHED).touch()
    with _locked(temporary):
        yield


def _refuse_foreign(folder: epath.Path) -> None:
    """Refuses temporary names beside the output that something else uses."""
    if folder.exists() and not (folder.is_dir() and ((folder / UNFINISHED).exists() or not any(folder.iterdir()))):
        raise CheckpointError(f"{folder} exists and was not made by this program, which would build there; rename it")


def _aside(final: epath.Path) -> epath.Path:
    return final.parent / f"{final.name}.replaced"


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{folder}: another process is writing this checkpoint") from error
        yield
    finally:
        os.close(descriptor)


def _sync(folder: epath.Path) -> None:
    """Waits until files and names are on the disk."""
    for parent, _, names in os.walk(folder):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _take_name(temporary: epath.Path, final: epath.Path) -> None:
    """Renames the new folder to its final name and removes what had it before.

    At every moment the name has a whole checkpoint.
    The mark of ownership stands in whichever folder has a temporary name, so that the next run may clear it.
    """
    if final.exists():
        (final / UNFINISHED).touch()
        if not _exchange(temporary, final):
            # A file system without exchange: there is a moment without the name, and the old one under another.
            aside = _aside(final)
            if aside.exists():
                remove_marked(aside, UNFINISHED)
            os.rename(final, aside)
            try:
                os.rename(temporary, final)
            except OSError:
                os.rename(aside, final)
                raise
            temporary = aside
        remove_marked(temporary, UNFINISHED)
    else:
        os.rename(temporary, final)
    (final / UNFINISHED).unlink()
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: epath.Path, other: epath.Path) -> bool:
    """Swaps two names in one step; False where system (Linux 3.15, glibc 2.28) or disk (some networks') cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here, exchange = -100, 2        # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))
