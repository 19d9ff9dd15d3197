"""Keeps two runs from writing into one folder at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_TRIES = 100        # of runs that end meanwhile; where no folder can ever be made (/proc), the same is said each time


class InUse(OSError):
    """A folder that another run is writing into."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike, wanted: bool = True) -> Iterator[None]:
    """Holds a folder while the block runs, if `wanted`: of the hosts of one run the first one holds it for all.

    The lock is the folder's own and dies with the process, so that a killed run bars nobody. A folder that is made for
    it, and stays empty, goes again: a run that is refused claims nothing. Object storage has no locks, and a place
    that cannot be made or opened is left to whoever writes there to complain of. Raises InUse.
    """
    if not wanted or "://" in os.fspath(folder):
        yield
        return
    folder = Path(folder).absolute()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    descriptor = _held(folder)
    try:
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):      # not empty, or gone
                parent.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _held(folder: Path) -> int | None:
    """An open descriptor that holds the lock; None where the folder cannot be opened."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:                   # a run that ends takes its empty folder away between the two
            continue
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise InUse(f"{folder}: another run is writing there; wait for its end, or choose another place") from error
        except FileNotFoundError:
            pass
        except OSError:                             # a file system without locks
            return descriptor
        os.close(descriptor)                        # the folder of a run that has ended since
    return None
