"""Keeps which examples of a run are still to come, on this shard and after a change in the number of shards.

The run's order is one long list of positions 0, 1, 2, ...: position p is drawn in epoch p // N of N examples. A shard
owns every `step`-th position. It reads them in order but emits them in rows out of order, so what is done is told by
two things: `cursor`, the next position that it has not read, and `waiting`, the positions that it owes before that.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from lvr_jax.data.sample import DataError

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a shard has left: first `waiting`, in this order, then cursor, cursor + step, cursor + 2 step, ..."""

    cursor: int
    step: int
    waiting: tuple[int, ...] = ()

    def position(self, n: int) -> int:
        """The n-th of what is left."""
        return self.waiting[n] if n < len(self.waiting) else self.cursor + (n - len(self.waiting)) * self.step

    def left(self, stop: int | None) -> int:
        """How many positions are left before `stop`; without one, as good as infinitely many."""
        if stop is None:
            return sys.maxsize
        return len(self.waiting) + max(0, -(-(stop - self.cursor) // self.step))

    def after(self, read: int, held: Sequence[int]) -> Progress:
        """When `read` more positions have been read and `held` of all that was read are not emitted yet."""
        old = min(read, len(self.waiting))
        cursor = self.cursor + (read - old) * self.step
        return Progress(cursor, self.step, (*held, *self.waiting[old:]))


def reshard(states: Sequence[dict], shard_count: int) -> list[dict]:
    """The iterator states of all shards of a run -> the states with which `shard_count` shards go on.

    Guaranteed: what the old shards had not emitted and the new ones will emit are the same positions, each once, so
    no epoch loses or repeats an example. The order of what follows, and which examples share a row, are others than
    they would have been. Skip counts go to shard 0, so that their sum stays true. DataError if the states do not
    belong together.
    """
    states = sorted(states, key=lambda state: state["shard"][0])
    if not states or shard_count < 1:
        raise DataError(f"{len(states)} iterator states for {shard_count} shards: expected at least one of each")
    first = states[0]
    found = [tuple(state["shard"]) for state in states]
    if found != [(k, len(states)) for k in range(len(states))]:
        raise DataError(f"iterator states of shards {found}: expected all shards of one run, each once")
    for state in states:
        if state["run"] != first["run"] or state["version"] != first["version"]:
            raise DataError("iterator states of different runs: settings or versions differ between shards")
    # Shards drift apart, as one needs fewer examples a row than another: even them out at the furthest one.
    front = max(state["cursor"] for state in states)
    stop = front if first["run"]["stop"] is None else min(front, first["run"]["stop"])
    owed = [p for state in states for p in state["waiting"]]
    owed += [p for state in states for p in range(state["cursor"], stop, state["step"])]
    owed.sort()
    skipped: dict[str, int] = {}
    for state in states:
        for name, count in state["skips"]["skipped"].items():
            skipped[name] = skipped.get(name, 0) + count
    total = {"seen": sum(state["skips"]["seen"] for state in states), "skipped": skipped}
    common = {"version": first["version"], "run": first["run"], "step": shard_count}
    return [
        common
        | {"shard": [k, shard_count], "cursor": front + k, "waiting": owed[k::shard_count]}
        | {"skips": total if k == 0 else {"seen": 0, "skipped": {}}}
        for k in range(shard_count)
    ]
