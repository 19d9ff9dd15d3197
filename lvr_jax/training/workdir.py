"""Ties a workdir to one config, and refuses a command with another config there.

`config.json` is written when the first step is due, so that a refused command claims nothing; a checkpoint holds the
config that made it, and both have to agree with the one that goes on.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.whole_file import write_whole
from lvr_jax.training.config_fields import ConfigFieldError, without_later

# Fields that a run may change when it goes on: how it runs, not what it computes.
FREE = (
    "checkpoint", "compilation_cache", "compute", "export", "hang_minutes", "held_out", "log", "mesh", "profile",
    "accumulate", "sharding",
)  # fmt: skip


def resolved(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values with sorted keys."""
    return json.loads(config.to_json(sort_keys=True))


def read_config(folder: epath.Path) -> dict[str, Any] | None:
    """The config that `folder` belongs to; None if it belongs to none yet. ConfigFieldError if that cannot be told."""
    path = folder / "config.json"
    try:
        if not path.exists():
            return None
        return read_object(path)
    except OSError as error:
        raise ConfigFieldError(f"{folder}: the workdir cannot be read ({' '.join(str(error).split())})") from error
    except JsonError as error:
        raise ConfigFieldError(f"{error}; expected the config of the run") from error


def write_config(folder: epath.Path, config: ConfigDict) -> None:
    """Writes the config atomically. ConfigFieldError if nothing can be written there, OSError if the disk is full."""
    path, text = folder / "config.json", json.dumps(resolved(config), indent=1, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigFieldError(f"{folder}: the workdir cannot be written ({' '.join(str(error).split())})") from error


def refuse_other(where, held: dict[str, Any] | None, config: ConfigDict) -> None:
    """Raises ConfigFieldError naming the first field in which a held config differs from this one."""
    own = resolved(config)
    counted = lambda fields: {k: v for k, v in without_later(fields).items() if k not in FREE}  # noqa: E731
    differ = [] if held is None else _differences(counted(held), counted(own))
    if differ:
        name, there, here = differ[0]
        raise ConfigFieldError(
            f"{where}: holds a run with {name} = {there!r}, this config has {here!r}"
            + (f" (and {len(differ) - 1} more differ)" if len(differ) > 1 else "")
            + "; choose another workdir, or fork it (init.fork_from)"
        )


def _differences(held: Any, own: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if not isinstance(held, dict) or not isinstance(own, dict):
        return [] if held == own else [(name, held, own)]
    keys = sorted({**held, **own})
    return [d for key in keys for d in _differences(held.get(key), own.get(key), f"{name}.{key}".lstrip("."))]
