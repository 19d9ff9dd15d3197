"""Removes folders that a file inside marks as the program's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def remove_marked(folder: str | os.PathLike, mark: str) -> None:
    """Removes a folder, the file `mark` last: a process that is killed meanwhile leaves a folder that still says whose
    it is, or an empty one."""
    folder = Path(folder)
    for path in folder.iterdir():
        if path.name == mark:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / mark).unlink(missing_ok=True)
    folder.rmdir()
