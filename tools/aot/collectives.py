"""What a compiled program moves between chips, with loops counted as often as they run."""

import dataclasses
import re

from aot import hlo
from aot.hlo import Array, arrays

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(.*?channel_id=(?P<id>\d+)")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\]<=)")     # a sum over an axis of one
# Between slices: the host takes and brings it, over the data-centre network.
_BETWEEN = re.compile(
    r"= \((?P<shape>.*?), u32\[\].*? (?:send|recv)\(.*_xla_host_transfer_rendezvous=\"(?P<id>[^\"]+)\""
    r".*_xla_megascale_transfer_type=\"(?P<kind>\w+)\""
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: one of KINDS; arrays: what a chip has of it afterwards (before, for a reduce-scatter of one array); times:
    how often a run of the program does it; between_slices: over the data-centre network; exposed: nothing runs beside
    it."""

    kind: str
    arrays: tuple[Array, ...]
    times: int
    between_slices: bool = False
    exposed: bool = False

    @property
    def bytes(self) -> int:
        return self.times * sum(array.bytes for array in self.arrays)


def collectives(text: str) -> list[Collective]:
    """Each collective once, however many pieces its start, its overlap with other work and its end are cut into.

    Pieces have their collective's channel and lie in computations of their own; two collectives of one computation are
    two, whatever their channel. Between slices a collective is a pair of transfers.
    """
    parts = hlo.computations(text)
    runs, alone = hlo.times(parts), hlo.times(parts, fused=False)
    within: dict[tuple, dict[str, list[Collective]]] = {}
    between: dict[tuple, Collective] = {}
    for name, lines in parts.items():
        count = round(runs.get(name, 0))
        for line in (each.line for each in lines if count):
            if match := _BETWEEN.search(line):
                kind, key = match["kind"].lower().replace("_", "-"), (name, match["id"])
                one = Collective(kind, tuple(arrays(match["shape"])), count, between_slices=True)
                between[key] = max(one, between.get(key, one), key=lambda c: c.bytes)
            elif (match := _COLLECTIVE.search(line)) and not _ALONE.search(line):
                result = arrays(match["shape"])
                if match["start"]:      # (operands, results, context)
                    result = [max(result, key=lambda a: a.bytes)]
                elif match["kind"] == "reduce-scatter":
                    result = [max([*result, *arrays(line)], key=lambda a: a.bytes)]
                pieces = within.setdefault((match["id"], match["kind"]), {})
                exposed = name in alone and not match["start"]      # else a piece in a fusion, beside a product
                pieces.setdefault(name, []).append(Collective(match["kind"], tuple(result), count, exposed=exposed))
    largest = [max(pieces.values(), key=lambda each: sum(c.bytes for c in each)) for pieces in within.values()]
    return [c for each in largest for c in each] + list(between.values())


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind, "between slices" where it is -> {"times", "bytes"} of one run of the program on one chip."""
    groups: dict[str, list[Collective]] = {}
    for c in sorted(found, key=lambda c: (c.between_slices, KINDS.index(c.kind))):
        groups.setdefault(c.kind + " between slices" * c.between_slices, []).append(c)
    return {
        name: {"times": sum(c.times for c in group), "bytes": sum(c.bytes for c in group)}
        for name, group in groups.items()
    }
