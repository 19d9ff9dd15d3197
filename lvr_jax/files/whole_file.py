"""Writes a file so that it is there completely or not at all, on a disk or in object storage."""

from __future__ import annotations

import os

from etils import epath

TEMPORARY = ".partial"


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """A disk: under a temporary name of this process, then renamed. gs://: one object, which appears whole."""
    path = epath.Path(os.fspath(path))
    content = content.encode() if isinstance(content, str) else content
    if "://" in os.fspath(path):
        path.write_bytes(content)
        return
    temporary = path.parent / f"{path.name}.{os.getpid()}{TEMPORARY}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
