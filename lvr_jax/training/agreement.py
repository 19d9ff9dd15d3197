"""What all hosts of a run must share before it starts: code, packages, config, workdir and checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import platform

from etils import epath
from ml_collections import ConfigDict

from lvr_jax.checkpoints.folder import is_remote, resolve
from lvr_jax.multihost.hosts import Hosts, code_version
from lvr_jax.training.checkpointing import versions

_BLOCK = 2**16          # bytes at a file's beginning, middle and end; a smaller file is read whole


def agree(hosts: Hosts, config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Raises HostsError, the same line in every process, unless all of them are about to do the same run.

    Every process calls it before anything that the others have to do with it. What is missing here is a value like
    any other: a file that one host alone lacks is a difference, and what all lack is refused by whoever needs it.
    """
    if hosts.count == 1:
        return
    checkpoints = epath.Path(workdir) / "checkpoints"
    held = {
        f"{name} {folder}": digest(folder)
        for name, folder in (
            ("init.checkpoint", config.init.checkpoint), ("data.tokenizer", config.data.tokenizer),
            ("init.fork_from", config.init.fork_from and epath.Path(config.init.fork_from) / "checkpoints"),
        )
        if folder
    }  # fmt: skip
    hosts.same(
        {
            "code": code_version(),
            "packages": versions() | {"python": platform.python_version()},
            "workdir": os.fspath(workdir),
            "config": json.loads(config.to_json(sort_keys=True)),
            **held,
            f"steps in {checkpoints}": _steps(checkpoints),
        }
    )


def digest(folder: str | os.PathLike) -> str:
    """A short name of a file or folder: names and sizes of all its files, and of each the bytes at three places.

    Reads little even of 72B, and so tells apart what is other weights, not what is a flipped bit. gs:// is one place
    that all hosts see: its name says enough.
    """
    place = resolve(folder)
    if is_remote(folder):
        return "shared"
    if not place.exists():
        return "missing"
    found = hashlib.sha256()
    paths = [epath.Path(parent) / name for parent, _, names in os.walk(place) for name in names]
    for path in sorted(paths) if place.is_dir() else [place]:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(f"{path.relative_to(place)} {size}\n".encode())
            for start in sorted({0, max(size // 2, 0), max(size - _BLOCK, 0)}):
                file.seek(start)
                found.update(file.read(_BLOCK))
    return found.hexdigest()[:16]


def _steps(checkpoints: epath.Path) -> list[int]:
    """Steps that a resumed run could go on from, as this host sees them."""
    if not checkpoints.exists():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
