"""Makes safe file names of paths and ids that come from data."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

# Below every file system's 255 bytes, with room for an ending.
MAX_NAME = 100


def inside(folder: str | os.PathLike, name: object) -> Path:
    """The path of `name` below `folder`, which may not be left. Raises ValueError saying what is wrong with the name.

    Links are followed: a link out of the folder is the work of whoever made the folder, a `..` that of the record.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"is {name!r}, expected a path relative to {os.fspath(folder)}")
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise ValueError(f"is {name!r}, which lies outside {os.fspath(folder)}")
    return Path(folder) / name


def packaged(path: str | os.PathLike) -> str:
    """A path as it is, but `lvr_jax/assets/...` means the files that came with the package, wherever one works."""
    text = os.fspath(path)
    if text.startswith(f"lvr_jax{os.sep}assets{os.sep}") and not os.path.exists(text):
        return os.path.join(Path(__file__).resolve().parents[2], text)
    return text


def file_name(text: str) -> str:
    """A file name for any text: readable, short, without separators; two texts never share one.

    Names that are sound already stay as they are; every other one, and one that looks like what is made here, gets a
    digest of the whole text.
    """
    plain = re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)
    made_here = re.search(r"-[0-9a-f]{8}$", text)
    if plain == text and 0 < len(text) <= MAX_NAME and not text.startswith(".") and not made_here:
        return text
    return f"{plain.lstrip('.')[:MAX_NAME - 9]}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
