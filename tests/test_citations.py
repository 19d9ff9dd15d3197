"""What a comment, a docstring or a page cites is in the repository: every path, and every Markdown file by its name."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = re.compile(r"(?<![\w/.])(?:lvr_jax|tools|configs|tests)/[\w./-]*\w")
PAGE = re.compile(r"(?<![\w/.-])[\w./-]*\w\.md\b")
# Documents that are not part of the repository, by the names under which comments have cited them.
ELSEWHERE = re.compile(r"\bDESIGN\b|(?<![\w/.])reference/\w")
# Paths of examples: what a program writes, or a user has.
EXAMPLES = {"tools/NAME.py", "tools/PROGRAM.py", "tools/benchmarks/NAME.py", "configs/NAME.py", "tests/ROOM"}
# Folders that only a wheel has.
EXAMPLES |= {"lvr_jax/shipped/tools", "lvr_jax/shipped/configs"}


def texts() -> Iterator[tuple[str, str]]:
    """(file, text) of every comment and docstring of the code, and of every page."""
    for folder in ("lvr_jax", "tools", "configs", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source, name = path.read_text(), str(path.relative_to(ROOT))
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT:
                    yield name, token.string
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                    yield name, ast.get_docstring(node)
    for path in [*ROOT.glob("*.md"), *(ROOT / "tools").rglob("*.md")]:
        yield str(path.relative_to(ROOT)), path.read_text()


def faults(file: str, text: str) -> list[str]:
    """What the text cites and the repository has not."""
    own = Path(file).parent
    found = [cited for cited in PATH.findall(text) if cited not in EXAMPLES and not (ROOT / cited).exists()]
    pages = [p for p in PAGE.findall(text) if not any((place / p).exists() for place in (ROOT, ROOT / own))]
    found += [page for page in pages if not list(ROOT.glob(f"*/**/{Path(page).name}"))]
    return [f"{file}: {cited}" for cited in (*found, *ELSEWHERE.findall(text))]


def test_what_is_cited_exists():
    assert [fault for file, text in texts() for fault in faults(file, text)] == []


def test_the_check_finds_what_is_not_there():
    assert faults("lvr_jax/x.py", "see lvr_jax/models/gone.py and notes.md (reference/papers.md, DESIGN idea 4)") == [
        "lvr_jax/x.py: lvr_jax/models/gone.py", "lvr_jax/x.py: notes.md", "lvr_jax/x.py: reference/papers.md",
        "lvr_jax/x.py: reference/p", "lvr_jax/x.py: DESIGN",
    ]  # fmt: skip
    assert faults("lvr_jax/x.py", "see lvr_jax/models/families.py, tests/golden and README.md") == []
