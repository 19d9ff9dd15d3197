"""The compiler's own cycles of a program, by part of the network and by pass, with loops counted as often as they run.

libtpu writes what its cost model expects of an instruction (`estimated_cycles`) into the HLO. It is a plan and not a
time: copies and collectives that run beside other work cost nothing in it, and Pallas kernels are not in it at all
(aot.roofline adds them). Which part an instruction belongs to is read from the source lines it was traced from.
"""

import collections
import dataclasses
import itertools
import re

from aot import hlo
from aot.hlo import Instruction

PASSES = ("forward", "again", "backward")
Lines = list[Instruction]
# The innermost line of our code that says what an instruction is for: (file, function), the first that fits. The files
# of attention serve both the tower and the decoder.
_PARTS = (
    (r"cross_entropy\.py", "", "cross-entropy"),
    (r".*attention\w*\.py", "", "attention"),
    (r"layers\.py", r"SwiGLU", "MLP"),
    (r"vision\.py", r"Merger", "merger"),
    (r"vision\.py", r"VisionTower\.embed|normalise|_computed", "patches"),
    (r"text\.py", r"Decoder\.logits", "logits"),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one instruction in all its turns. product: it is or holds a matrix product."""

    part: str
    during: str
    product: bool
    cycles: float


class Sources:
    """The stack frames of a module: metadata -> (file, function) from the innermost line outwards."""

    def __init__(self, text: str):
        table = lambda name: self._table(text, name)  # noqa: E731
        files, functions = table("FileNames"), table("FunctionNames")
        number = lambda key, line: int(re.search(rf"{key}=(\d+)", line)[1])  # noqa: E731
        places = {
            i: (files[number("file_name_id", x)].strip('"').rsplit("/", 1)[-1],
                functions[number("function_name_id", x)].strip('"'))
            for i, x in table("FileLocations").items()
        }  # fmt: skip
        # A parent is written one too high; none is 1 of the first frame.
        self.frames = {i: (places[number("file_location_id", x)], number("parent_frame_id", x) - 1)
                       for i, x in table("StackFrames").items()}  # fmt: skip

    @staticmethod
    def _table(text: str, name: str) -> dict[int, str]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        lines = found[1].splitlines() if found else []
        return {int(i): rest for i, _, rest in (line.partition(" ") for line in lines)}

    def __call__(self, line: str) -> list[tuple[str, str]]:
        found = re.search(r"stack_frame_id=(\d+)", line)
        at, frames = int(found[1]) if found else 0, []
        while at in self.frames and len(frames) < 100:
            place, at = self.frames[at]
            frames.append(place)
        return frames


def part_of(frames: list[tuple[str, str]], operation: str) -> str:
    """The part of the network that a line of the program belongs to."""
    files = {file for file, _ in frames}
    where = "tower" if "vision.py" in files else "decoder" if "text.py" in files else ""
    for file, function in frames:
        for in_file, in_function, name in _PARTS:
            if re.fullmatch(in_file, file) and re.match(in_function, function):
                return f"{where} {name}" if where and name in ("attention", "MLP") else name
    if where:
        return f"{where} {'projections' if operation.endswith('dot_general') else 'norms, RoPE, layouts'}"
    if "objectives.py" in files or any("models" == file for file in files):
        return "losses, embedding"
    if files & {"step.py", "update.py"}:
        return "optimizer, sums of gradients"
    return "decoding" if files & {"rollout.py", "machine.py", "decoding.py"} else "other"


def pass_of(operation: str) -> str:
    """The pass that an operation belongs to: forward, again (rematerialised) or backward."""
    if "rematted_computation" in operation:
        return "again"
    return "backward" if "transpose(" in operation else "forward"


def _meaning(each: Instruction, lines: Lines, parts: dict[str, Lines]) -> tuple[Instruction, bool]:
    """The line that says what an instruction is for, and whether it is a matrix product.

    A fusion is named after the product in it, if there is one. What has no name, a copy into another layout most of
    all, is named after what it ends with, what it reads or what reads it.
    """
    inside = _inside(each, parts)
    for one in inside:
        if one.opcode in ("convolution", "dot"):
            return one, True
    read = [one for one in lines if one.name in each.operands]
    reading = [one for one in lines if each.name in one.operands]
    near = itertools.chain.from_iterable((one, *reversed(_inside(one, parts))) for one in (*read, *reading))
    named = (one for one in itertools.chain([each], reversed(inside), near) if "op_name=" in one.line)
    return next(named, each), False


def _inside(each: Instruction, parts: dict[str, Lines]) -> Lines:
    if each.opcode != "fusion":
        return [each]
    found = [one for line in parts.get(each.called, ()) for one in _inside(line, parts)]
    return [*found, *parts.get(each.called, ())]


def costs(text: str, share: hlo.Share = hlo.all_taken) -> list[Cost]:
    """What each instruction outside of fusions costs. share: see hlo.times."""
    parts, sources = hlo.computations(text), Sources(text)
    runs = hlo.times(parts, share, fused=False)
    found = []
    for name, lines in parts.items():
        for each in lines:
            if runs.get(name) and each.cycles:
                line, product = _meaning(each, lines, parts)
                operation = re.search(r'op_name="([^"]*)"', line.line)
                operation = operation[1] if operation else ""
                found.append(Cost(part_of(sources(line.line), operation), pass_of(operation), product,
                                  runs[name] * each.cycles))  # fmt: skip
    return found


def unpriced(text: str) -> int:
    """How many instructions that run have no estimate: with any, the sum of the others says nothing of the program."""
    parts = hlo.computations(text)
    runs = hlo.times(parts, fused=False)
    return sum(each.unpriced for name, lines in parts.items() if runs.get(name) for each in lines)


def by_part(found: list[Cost]) -> dict[str, dict[str, float]]:
    """Part -> cycles by pass, and "products" of them all; the dearest part first."""
    total: dict[str, collections.Counter] = {}
    for cost in found:
        here = total.setdefault(cost.part, collections.Counter())
        here[cost.during] += cost.cycles
        here["products"] += cost.product * cost.cycles
    most = lambda item: -sum(item[1][p] for p in PASSES)  # noqa: E731
    return {part: {key: round(here[key]) for key in (*PASSES, "products")}
            for part, here in sorted(total.items(), key=most)}  # fmt: skip
