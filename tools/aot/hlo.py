"""What does a compiled program move between chips? Read from its HLO text, loops counted as often as they run."""

import collections
import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
         "s64": 8, "u64": 8}  # fmt: skip
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(.*?channel_id=(?P<id>\d+)")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\]<=)")     # a sum over an axis of one
# Between slices: the host takes and brings it, over the data-centre network.
_BETWEEN = re.compile(
    r"= \((?P<shape>.*?), u32\[\].*? (?:send|recv)\(.*_xla_host_transfer_rendezvous=\"(?P<id>[^\"]+)\""
    r".*_xla_megascale_transfer_type=\"(?P<kind>\w+)\""
)
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: one of KINDS; arrays: what a chip has of it afterwards (before, for a reduce-scatter of one array); times:
    how often a run of the program does it; between_slices: over the data-centre network."""

    kind: str
    arrays: tuple[Array, ...]
    times: int
    between_slices: bool = False

    @property
    def bytes(self) -> int:
        return self.times * sum(array.bytes for array in self.arrays)


def arrays(text: str) -> list[Array]:
    """Every array type that is named in a piece of HLO."""
    return [Array(d, tuple(int(n) for n in shape.split(",") if n)) for d, shape in _ARRAY.findall(text) if d in BYTES]


def computations(text: str) -> dict[str, list[str]]:
    """Name -> instructions; the entry is called ENTRY."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            here = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif line.startswith("  "):
            here.append(line)
    return found


def _trips(condition: str, parts: dict[str, list[str]]) -> int:
    """How often a loop runs that counts from 0 up to a constant: a `lax.scan`, or at most, a bounded `while_loop`."""
    lines = list(parts[condition])
    lines += [line for name in _CALLS.findall("\n".join(lines)) for line in parts.get(name, ())]
    return max((int(n) for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", "\n".join(lines))), default=1)


def times(parts: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs; the branches of a conditional as if all were taken."""
    found: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
        found[name] += count
        for line in parts.get(name, ()):
            loop = _WHILE.search(line)
            trips = _trips(loop[1], parts) if loop else 1
            branches = [n.strip(" %") for group in _BRANCHES.findall(line) for n in group.split(",")]
            for each in _CALLS.findall(line) + branches:
                visit(each, count * trips)

    visit("ENTRY", 1)
    return dict(found)


def collectives(text: str) -> list[Collective]:
    """Each collective once, however many pieces its start, its overlap with other work and its end are cut into.

    Pieces have their collective's channel and lie in computations of their own; two collectives of one computation are
    two, whatever their channel. Between slices a collective is a pair of transfers.
    """
    parts = computations(text)
    runs = times(parts)
    within: dict[tuple, dict[str, list[Collective]]] = {}
    between: dict[tuple, Collective] = {}
    for name, lines in parts.items():
        for line in lines:
            if not runs.get(name):
                continue
            if match := _BETWEEN.search(line):
                kind, key = match["kind"].lower().replace("_", "-"), (name, match["id"])
                one = Collective(kind, tuple(arrays(match["shape"])), runs[name], between_slices=True)
                between[key] = max(one, between.get(key, one), key=lambda c: c.bytes)
            elif (match := _COLLECTIVE.search(line)) and not _ALONE.search(line):
                result = arrays(match["shape"])
                if match["start"]:      # (operands, results, context)
                    result = [max(result, key=lambda a: a.bytes)]
                elif match["kind"] == "reduce-scatter":
                    result = [max([*result, *arrays(line)], key=lambda a: a.bytes)]
                pieces = within.setdefault((match["id"], match["kind"]), {})
                pieces.setdefault(name, []).append(Collective(match["kind"], tuple(result), runs[name]))
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
