"""Whatever stands in a file that should be JSON, the answer is its value or one line that names the file."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvr_jax.files.json_io import JsonError, check_kinds, parse, parse_object

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                      lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)  # fmt: skip


@pytest.mark.parametrize("text, says", [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ("9" * 5000, "not JSON"),
    (b"\xff", "not UTF-8"),
    ('{"a": "x\\ud800"}', "half of a character"),
    ('{"\\udc00": 1}', "half of a character"),
])  # fmt: skip
def test_what_is_no_json_is_one_line_that_names_the_file(text, says):
    with pytest.raises(JsonError, match=f"^FILE: .*{says}") as error:
        parse(text, "FILE")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("text, found", [("[]", "a list"), ("null", "null"), ("1", "a number"), ('"a"', "text"),
                                         ("true", "true or false")])  # fmt: skip
def test_another_kind_of_value_is_named(text, found):
    with pytest.raises(JsonError, match=f"FILE: expected a JSON object, found {found}"):
        parse_object(text, "FILE")


@dataclasses.dataclass
class Record:
    name: "str"
    right: "bool | None"
    count: "int" = 0
    share: "float" = 0.0
    logits: "tuple[float, ...]" = ()
    other: "Record | None" = None


@pytest.mark.parametrize("fields, says", [
    ({"name": "a", "right": None, "count": 2, "share": 1, "logits": [1, 2.5], "other": 7}, None),
    ({"name": None}, "name is None, expected str"),
    ({"right": 1}, "right is 1, expected bool"),
    ({"count": True}, "count is True, expected int"),
    ({"count": 1.0}, "count is 1.0, expected int"),
    ({"share": "1"}, "share is '1', expected float"),
    ({"logits": [1, None]}, "logits is"),
    ({"logits": 5}, "logits is 5, expected tuple"),
])  # fmt: skip
def test_a_field_of_another_kind_is_named(fields, says):
    if says is None:
        check_kinds(fields, Record, "FILE:1")
        return
    with pytest.raises(JsonError, match=f"^FILE:1: {says}"):
        check_kinds(fields, Record, "FILE:1")


@given(VALUES)
def test_every_value_comes_back(value):
    assert parse(json.dumps(value), "FILE") == value
    assert parse(json.dumps(value, ensure_ascii=False).encode(), "FILE") == value


@given(VALUES, st.data())
def test_damaged_text_is_a_value_or_a_json_error(value, data):
    text = bytearray(json.dumps({"key": value}).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255))
    try:
        parse_object(bytes(text[: data.draw(st.integers(0, len(text)))]), "FILE")
    except JsonError as error:
        assert str(error).startswith("FILE: ") and "\n" not in str(error)
