"""Reads the HLO text of a compiled program: its instructions, and how often each computation runs."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
         "s64": 8, "u64": 8}  # fmt: skip
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)"
)
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_EITHER = re.compile(r"true_computation=%?([\w.-]+), false_computation=%?([\w.-]+)")
# What libtpu 0.0.42.1 writes where it has no estimate: of copies and gathers that tpu7x's sparse cores do.
_NO_ESTIMATE = 2**63 - 1
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """minor_to_major, tile: its layout, where the text says so; on_chip: in VMEM or SMEM and not in HBM."""

    dtype: str
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    tile: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    on_chip: bool = dataclasses.field(default=False, compare=False)

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)

    @property
    def held(self) -> int:
        """Bytes with what fills up its tiles: 80 numbers lie in 128 places."""
        shape = list(self.shape)
        for axis, size in zip(self.minor_to_major, reversed(self.tile)):
            shape[axis] = -(-shape[axis] // size) * size
        return BYTES[self.dtype] * math.prod(shape)


def arrays(text: str) -> list[Array]:
    """Every array type that is named in a piece of HLO."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n)  # noqa: E731
    found = []
    for dtype, shape, order, layout in _ARRAY.findall(text):
        if dtype in BYTES:
            tile = re.search(r"T\(([\d,]+)\)", layout)
            space = re.search(r"S\((\d+)\)", layout)
            found.append(Array(dtype, numbers(shape), numbers(order), numbers(tile[1]) if tile else (),
                               space is not None and space[1] != "0"))  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. shape: the text of its result's type; line: all of it, attributes and metadata included."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    @functools.cached_property
    def arrays(self) -> list[Array]:
        return arrays(self.shape)

    @property
    def cycles(self) -> int:
        """Cycles by the compiler's cost model; 0 where it says nothing, as of Pallas kernels, or that it has none."""
        return self._estimate if self._estimate < _NO_ESTIMATE else 0

    @property
    def unpriced(self) -> bool:
        """Whether the compiler says that its cost model has no estimate of this instruction."""
        return self._estimate >= _NO_ESTIMATE

    @functools.cached_property
    def _estimate(self) -> int:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else 0

    @property
    def called(self) -> str | None:
        """The computation that a fusion or a call stands for."""
        found = re.search(r"calls=%?([\w.-]+)|to_apply=%?([\w.-]+)", self.line)
        return (found[1] or found[2]) if found else None


def instruction(line: str) -> Instruction | None:
    """Reads one line of HLO text; None if it is no instruction."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    operands = re.split(r"\)(?:,|$)", match["rest"], maxsplit=1)[0]
    return Instruction(match["name"], match["shape"], match["opcode"], tuple(re.findall(r"%([\w.-]+)", operands)), line)


def computations(text: str) -> dict[str, list[Instruction]]:
    """Name -> instructions; the entry is called ENTRY."""
    found: dict[str, list[Instruction]] = {}
    here: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            here = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif line.startswith("  ") and (each := instruction(line)):
            here.append(each)
        elif here and line.strip() != "}":       # a kernel's metadata has lines of its own
            here[-1] = dataclasses.replace(here[-1], line=f"{here[-1].line} {line}")
    return found


def _constants(lines: Iterable[Instruction]) -> dict[str, int]:
    found = ((each.name, re.match(r"\s+(?:ROOT )?\S+ = [su]32\[\]\S* constant\((\d+)\)", each.line)) for each in lines)
    return {name: int(match[1]) for name, match in found if match}


def _trips(condition: str, body: str, line: str, parts: dict[str, list[Instruction]]) -> int:
    """How often a loop runs that counts from 0 to a constant: a `lax.scan`, or at most, a bounded `while_loop`.

    The compiler's own count where it wrote one down. Its rings count unsigned and by two.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    lines = list(parts[condition])
    lines += [each for one in parts[condition] if one.called for each in parts.get(one.called, ())]
    end = max(_constants(lines).values(), default=1)
    return -(-end // _stride(condition, body, parts))


def _stride(condition: str, body: str, parts: dict[str, list[Instruction]]) -> int:
    """By how much a turn raises the counter: what the condition compares, at the same place of the body's result."""
    counters = [re.search(r"index=(\d+)", each.line) for each in parts[condition]
                if each.opcode == "get-tuple-element" and re.match(r"[su]32\[\]", each.shape)]  # fmt: skip
    index = int(counters[0][1]) if counters else None
    lines = parts.get(body, [])
    if index is None or not lines:
        return 1
    by_name = {each.name: each for each in lines}
    root = next((each for each in lines if re.match(r"\s+ROOT ", each.line)), lines[-1])
    raised = by_name.get(root.operands[index]) if root.opcode == "tuple" and index < len(root.operands) else None
    while raised is not None and raised.opcode in ("copy", "bitcast"):
        raised = by_name.get(raised.operands[0])
    if raised is None:
        return 1
    inside = parts.get(raised.called, []) if raised.opcode == "fusion" else [raised]
    constants = _constants([*lines, *inside])
    for each in inside:
        if each.opcode == "add":
            steps = [constants[name] for name in each.operands if name in constants]
            return steps[0] if steps and steps[0] > 0 else 1
    return 1


Share = Callable[[Instruction, int], float]


def all_taken(conditional: Instruction, branch: int) -> float:
    """Counts every branch of a conditional as taken once."""
    return 1


def times(parts: dict[str, list[Instruction]], share: Share = all_taken, fused: bool = True) -> dict[str, float]:
    """How often each computation runs. share: of the turns that take a branch (0: false); fused: also what lies inside
    of fusions."""
    found: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: float) -> None:
        found[name] += count
        for each in parts.get(name, ()):
            if each.opcode == "while" and (loop := _WHILE.search(each.line)):
                trips = _trips(loop[1], loop[2], each.line, parts)
                visit(loop[1], count * trips)
                visit(loop[2], count * trips)
            elif each.opcode == "conditional":
                either = _EITHER.search(each.line)
                names = [either[2], either[1]] if either else [
                    n.strip(" %") for group in _BRANCHES.findall(each.line) for n in group.split(",")]  # fmt: skip
                for branch, called in enumerate(names):
                    visit(called, count * share(each, branch))
            elif each.opcode not in ("fusion", "reduce", "sort", "scatter", "map", "select-and-scatter") or fused:
                for called in _CALLS.findall(each.line):
                    visit(called, count)
                for group in _BRANCHES.findall(each.line):
                    for called in group.split(","):
                        visit(called.strip(" %"), count)

    visit("ENTRY", 1)
    return dict(found)
