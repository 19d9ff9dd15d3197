"""Damages files at random: bytes, ends, and values of JSON exchanged for other kinds. A seed says everything."""

import json
import random
from pathlib import Path

_DEEP = "[" * 100_000
_VALUES = ["null", "true", "false", "-1", "0", "1", "1.5", "1e400", "-1e400", "NaN", str(10**30), "9" * 5000, '""',
           '"x"', '"\\ud800"', '"../../etc/passwd"', '"\\u0000"', "[]", "{}", "[1]", '["x"]', "[[]]", "[null]",
           '{"x": 1}', _DEEP, '{"a":' * 50_000]  # fmt: skip
_MARK = "damaged-here"


def damaged(content: bytes, rng: random.Random, is_json: bool) -> bytes:
    """Another content than the given one."""
    while True:
        ways = [_flipped, _cut, _inserted, _without, *([_other_value] * 4 if is_json else [])]
        found = rng.choice(ways)(content, rng)
        if found != content:
            return found


def damage_file(path: Path, rng: random.Random) -> None:
    """JSON by value too; a jsonl file in one of its lines; a safetensors file mostly in its header."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = content.split(b"\n")
        n = rng.randrange(max(len(lines) - 1, 1))
        lines[n] = damaged(lines[n], rng, True)
        path.write_bytes(b"\n".join(lines))
    elif path.suffix == ".safetensors" and rng.random() < 0.8:
        length = int.from_bytes(content[:8], "little")
        header = damaged(content[8 : 8 + length], rng, True)
        length = len(header) if rng.random() < 0.8 else rng.choice([0, length, 2**63, 2**64 - 1, len(content)])
        path.write_bytes(length.to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :])
    else:
        path.write_bytes(damaged(content, rng, path.suffix in (".json", "") and content[:1] in (b"{", b"[")))


def _flipped(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 20])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)] if rng.random() < 0.9 else b""


def _inserted(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 8, 100])) + content[at:]


def _without(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice([1, 4, 64]) :]


def _other_value(content: bytes, rng: random.Random) -> bytes:
    """A member anywhere is exchanged, dropped, or given once more under another name."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    places = list(_places(value, []))
    if not places or rng.random() < 0.03:
        return rng.choice(_VALUES).encode()
    *path, last = rng.choice(places)
    parent = value
    for key in path:
        parent = parent[key]
    way = rng.random()
    if way < 0.15:
        del parent[last]
    elif way < 0.25 and isinstance(parent, dict):
        parent[rng.choice(["x", "", last + "s", "__class__", "header"])] = parent.pop(last)
    else:
        parent[last] = _MARK
    return json.dumps(value, ensure_ascii=False).replace(f'"{_MARK}"', rng.choice(_VALUES)).encode("utf-8", "replace")


def _places(value, path):
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield [*path, key]
        if len(path) < 6:
            yield from _places(member, [*path, key])
