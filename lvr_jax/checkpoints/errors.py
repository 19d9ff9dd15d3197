"""What can be wrong with a checkpoint, in one line that names file, value and expectation."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, of another network, or in the way."""


class DiskFullError(OSError):
    """The disk has, or would have, no room for the output; nothing of it was kept."""


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first few of many names, on one line."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def size(count: int) -> str:
    """A number of bytes as text, "1.23 GB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def free_space(folder) -> int:
    """Free bytes of the disk that holds a folder."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def disk_full_is_one_line(folder) -> Iterator[None]:
    """Turns every library's way of saying that the disk is full into DiskFullError."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # TensorStore raises ValueError with the system's message in its text (0.1.86).
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            text = f"{folder}: the disk is full ({size(free_space(folder))} free); nothing was kept"
            raise DiskFullError(text) from error
        raise
