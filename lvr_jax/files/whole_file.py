"""Writes a file so that it is there completely or not at all, on a disk or in object storage."""

from __future__ import annotations

import os

from etils import epath

TEMPORARY = ".partial"


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file atomically: on a disk under a temporary name and renamed, on gs:// as one object."""
    final = epath.Path(os.fspath(path))
    content = content.encode() if isinstance(content, str) else content
    if "://" in os.fspath(final):
        final.write_bytes(content)
        return
    temporary = final.parent / f"{final.name}.{os.getpid()}{TEMPORARY}"
    try:
        temporary.write_bytes(content)
        temporary.replace(final)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
