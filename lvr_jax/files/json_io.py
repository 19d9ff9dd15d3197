"""Reads JSON that other people's programs wrote; every fault is one line that names the file.

The standard parser raises four unrelated exceptions for bad input (wrong bytes, wrong syntax, nesting that exhausts the
stack, numbers of thousands of digits) and accepts text that no file can be written from again (half of a surrogate
pair). All of them are JsonError here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

# An escaped surrogate; only text that has one can hold half a pair.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """Text that is not the JSON that was expected; the message begins with where it stands."""


def parse(text: str | bytes, where: object) -> Any:
    """Parses one JSON value. Raises JsonError naming `where` (a file, or file:line) and what is wrong."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if text.startswith("version https://git-lfs"):
            raise JsonError(f"{where}: is a Git LFS pointer, not the file; fetch it (git lfs pull)")
        value = json.loads(text)
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"{where}: not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})") from error
    except RecursionError as error:
        raise JsonError(f"{where}: not JSON (nested too deeply)") from error
    except ValueError as error:
        raise JsonError(f"{where}: not JSON ({str(error).splitlines()[0]})") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise JsonError(f"{where}: holds half of a character ({half}), which no file can hold as text") from error
    return value


def parse_object(text: str | bytes, where: object) -> dict[str, Any]:
    """As `parse`, for a JSON object. Raises JsonError if the value is of another kind."""
    value = parse(text, where)
    if not isinstance(value, dict):
        raise JsonError(f"{where}: expected a JSON object, found {kind(value)}")
    return value


def read_object(path) -> dict[str, Any]:
    """Reads a file that holds one JSON object. Raises JsonError, FileNotFoundError."""
    return parse_object(path.read_bytes(), os.fspath(path))


# What a field of a record may hold in JSON, by its annotation.
_KINDS = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float), "dict": (dict,), "tuple": (list,)}


def check_kinds(fields: Mapping[str, Any], record: type, where: object) -> None:
    """Raises JsonError naming the first of the fields whose kind is not what the dataclass `record` declares for it.

    Declarations of other types than JSON's (another record) are the caller's to read.
    """
    for declared in dataclasses.fields(record):
        name, optional = str(declared.type).removesuffix(" | None"), str(declared.type).endswith(" | None")
        kinds = _KINDS.get(name.split("[")[0])
        if declared.name not in fields or kinds is None:
            continue
        value = fields[declared.name]
        sound = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if name == "tuple[float, ...]" and sound:
            sound = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        if not (sound or optional and value is None):
            raise JsonError(f"{where}: {declared.name} is {value!r:.80}, expected {declared.type}")


def kind(value: Any) -> str:
    """The kind of a parsed value in JSON's words, for messages."""
    for types, name in ((bool, "true or false"), (dict, "an object"), (list, "a list"), (str, "text"),
                        ((int, float), "a number")):  # fmt: skip
        if isinstance(value, types):
            return name
    return "null"
