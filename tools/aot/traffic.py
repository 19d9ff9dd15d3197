"""The bytes that a compiled program reads from HBM and writes to it, loops counted as often as they run.

Every instruction reads its operands once and writes its result once, tiles filled up; what lies in VMEM, is sliced from
a larger array or updated in place counts as far as it is touched. What a fusion reads twice counts once.
"""

import re

from aot import hlo
from aot.hlo import Array, Instruction

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
         "partition-id", "opt-barrier", "iota")  # fmt: skip
Parts = dict[str, list[Instruction]]


def hbm_bytes(text: str, share: hlo.Share = hlo.all_taken) -> float:
    """Of one run on one chip."""
    parts = hlo.computations(text)
    runs = hlo.times(parts, share, fused=False)
    total = 0.0
    for name, lines in parts.items():
        if runs.get(name):
            shapes = {each.name: each.arrays for each in lines}
            total += runs[name] * sum(_touched(each, shapes, parts) for each in lines
                                     if each.opcode not in _FREE and not each.opcode.endswith("-done"))  # fmt: skip
    return total


def _size(arrays: list[Array]) -> int:
    return sum(array.held for array in arrays if not array.on_chip)


def _touched(each: Instruction, shapes: dict[str, list[Array]], parts: Parts) -> int:
    read = [_size(shapes.get(name, [])) for name in each.operands]
    written = _size(each.arrays)
    if each.opcode == "fusion":
        return sum(min(size, _read(each.called, i, parts)) for i, size in enumerate(read) if size) + min(
            written, _written(each.called, parts))  # fmt: skip
    if each.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if each.opcode in ("slice-start", "dynamic-slice-start"):       # ((operand), result, context)
        return sum(array.held * (2 - array.on_chip) for array in each.arrays[1:2])
    if each.opcode == "dynamic-update-slice":
        return 2 * read[1]
    if each.opcode == "copy-start":             # (result, operand, context)
        return sum(read) + _size(each.arrays[:1])
    if each.opcode.endswith("-start"):          # (operands, results, context)
        return sum(read) + _size([max(each.arrays, key=lambda a: a.bytes)]) if each.arrays else 0
    return sum(read) + written


def _read(computation: str, number: int, parts: Parts) -> int:
    """Bytes of a fusion's operand that it looks at."""
    lines = parts.get(computation, [])
    found = [each for each in lines if each.opcode == "parameter" and re.search(rf"parameter\({number}\)", each.line)]
    return _used(found[0], lines, parts) if found else 0


def _used(value: Instruction, lines: list[Instruction], parts: Parts) -> int:
    whole, total = sum(array.held for array in value.arrays), 0
    for each in lines:
        for place in (i for i, name in enumerate(each.operands) if name == value.name):
            if each.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                total += _all(each)
            elif each.opcode == "dynamic-update-slice" and place == 0 or each.opcode == "tuple":
                pass                            # in place, or handed on
            elif each.opcode in ("bitcast", "reshape"):
                total += _used(each, lines, parts)
            elif each.opcode == "fusion":
                total += _read(each.called, place, parts)
            else:
                return whole
    return min(total, whole)


def _all(each: Instruction) -> int:
    return sum(array.held for array in each.arrays)


def _written(computation: str, parts: Parts) -> int:
    lines = parts.get(computation, [])
    by_name = {each.name: each for each in lines}
    root = next((each for each in lines if re.match(r"\s+ROOT ", each.line)), None)
    return _made(root, by_name, parts) if root else 0


def _made(value: Instruction, by_name: dict[str, Instruction], parts: Parts) -> int:
    """Bytes that an instruction writes: for an in-place update the updated part, for a forwarded operand nothing."""
    size = sum(array.held for array in value.arrays if not array.on_chip)
    if value.opcode == "tuple":
        return sum(_made(by_name[name], by_name, parts) for name in value.operands if name in by_name)
    if value.opcode == "bitcast" and value.operands and value.operands[0] in by_name:
        return min(size, _made(by_name[value.operands[0]], by_name, parts))
    if value.opcode == "dynamic-update-slice":
        return _all(by_name[value.operands[1]]) if value.operands[1] in by_name else size
    if value.opcode in ("parameter", "get-tuple-element"):
        return 0
    return min(size, _written(value.called, parts)) if value.opcode == "fusion" else size
