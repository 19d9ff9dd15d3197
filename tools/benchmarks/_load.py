"""Says whether others used the processors while something was timed, from the kernel's own count."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

# Processors that others may keep busy on a quiet machine: a monitor, a shell.
IDLE = 0.1


@contextlib.contextmanager
def watched() -> Iterator[dict]:
    """Fills in, at the end of the block: load_before, load_after, processors_of_others (on average; None where the
    kernel does not tell) and quiet. Without a count nothing is called quiet."""
    found: dict[str, object] = {"load_before": round(os.getloadavg()[0], 1)}
    wall, all_, own = time.perf_counter(), _busy(), _own()
    yield found
    wall, now = time.perf_counter() - wall, _busy()
    others = None if now is None or all_ is None else max(now - all_ - (_own() - own), 0.0) / wall
    found |= {
        "load_after": round(os.getloadavg()[0], 1), "cores": os.cpu_count(),
        "processors_of_others": None if others is None else round(others, 2),
        "quiet": others is not None and others <= IDLE,
    }  # fmt: skip


def _busy() -> float | None:
    """Seconds that all processors have worked since the machine was started."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, irq, soft, *_ = map(int, path.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
