"""Every module, public function and class says what it is in a first line: a statement with a full stop."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lvr_jax", "tools", "configs", "tests")
# Entry points: the docstring of their module says what they do.
BY_MODULE = {"get_config", "main", "run"}


def files() -> list[str]:
    return [str(p.relative_to(ROOT)) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def said(node: ast.AST) -> str | None:
    """What is wrong with a docstring's first sentence, or None."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return "has no docstring"
    summary = " ".join(docstring.split("\n\n")[0].split())
    # A question has its mark before any full stop. A first paragraph may end in a colon, before a table.
    if re.match(r"[^.:]*\?(\s|$)", summary):
        return f"asks: {summary[:60]!r}"
    if not re.search(r"[.:](\s|$)", summary):
        return f"has no full stop: {summary[:60]!r}"
    return None


@functools.cache
def faults(file: str) -> tuple[str, ...]:
    """Line by line what a file lacks. Tests, private names and methods may have none, but no question either."""
    tree = ast.parse((ROOT / file).read_text())
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            continue
        public = not file.startswith("tests/") and node in tree.body and not node.name.startswith("_")
        needed = isinstance(node, ast.Module) or (public and node.name not in BY_MODULE)
        fault = said(node)
        if fault and (needed or not fault.startswith("has no")):
            found.append(f"{file}:{getattr(node, 'lineno', 1)}: {getattr(node, 'name', 'module')} {fault}")
    return tuple(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_first_lines_are_statements_with_a_full_stop(folder):
    assert [fault for file in files() if file.startswith(folder) for fault in faults(file)] == []


@pytest.mark.parametrize("docstring, wrong", [
    ("What is a row doing?", "asks"), ("Turns a row. Which one?", None), ("No stop", "has no full stop"),
    ("Two lines that\n    end here.", None), (None, "has no docstring"),
])  # fmt: skip
def test_the_check_tells_statements_from_questions(docstring, wrong):
    node = ast.parse("pass" if docstring is None else f'"""{docstring}"""')
    assert (said(node) is None) if wrong is None else said(node).startswith(wrong)
