"""Runs the tour, tools/tour.ipynb, cell by cell, and compares what it prints with what the notebook keeps.

    python tests/tools/test_tour.py --write         # after a change that is meant: runs it and keeps the outputs
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402

TOUR = Path(__file__).parents[2] / "tools" / "tour.ipynb"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.]*\d)")
# Two replies of 64 may go the other way where another machine's instructions round differently.
TOLERANCE = 0.03


def run(cells: list[dict]):
    """Yields (cell, what it printed, the figure that its last line is or None) in one namespace, as a kernel would."""
    space = {"__name__": "__main__"}
    for cell in cells:
        body, last, printed = ast.parse("".join(cell["source"])), None, io.StringIO()
        if isinstance(body.body[-1], ast.Expr):
            last = ast.Expression(body.body.pop().value)
        with contextlib.redirect_stdout(printed):
            exec(compile(body, "tour", "exec"), space)
            shown = None if last is None else eval(compile(last, "tour", "eval"), space)
        yield cell, printed.getvalue(), shown if isinstance(shown, Figure) else None


def code_of(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kept(cell: dict) -> str:
    return "".join(line for output in cell["outputs"] if output["output_type"] == "stream" for line in output["text"])


def outputs(printed: str, figure: Figure | None) -> list[dict]:
    """A cell's outputs as a notebook keeps them."""
    found = [{"output_type": "stream", "name": "stdout", "text": printed.splitlines(True)}] if printed else []
    if figure is not None:
        held = io.BytesIO()
        figure.savefig(held, dpi=80, metadata={"Software": None})
        image = base64.b64encode(held.getvalue()).decode()
        found.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": image}})
    return found


@pytest.mark.slow
def test_the_tour_prints_what_it_keeps():
    for cell, printed, figure in run(code_of(json.loads(TOUR.read_text()))):
        before = kept(cell)
        assert NUMBER.sub("N", printed) == NUMBER.sub("N", before), printed
        for ours, theirs in zip(map(float, NUMBER.findall(printed)), map(float, NUMBER.findall(before))):
            assert abs(ours - theirs) <= TOLERANCE * (1 + abs(theirs)), printed
        pictures = [output for output in cell["outputs"] if output["output_type"] == "display_data"]
        assert len(pictures) == (figure is not None)


def test_numbers_are_found_in_what_is_printed_and_not_in_names():
    assert NUMBER.findall("latent_0 p 0.25, -3.1 points of 64; digit 7") == ["0.25", "-3.1", "64", "7"]


def test_every_cell_has_been_run():
    cells = code_of(json.loads(TOUR.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)


def write() -> None:
    """Runs all cells and keeps what they print and show."""
    notebook = json.loads(TOUR.read_text())
    for number, (cell, printed, figure) in enumerate(run(code_of(notebook)), 1):
        print(printed)
        cell["outputs"], cell["execution_count"] = outputs(printed, figure), number
        cell["source"] = "".join(cell["source"]).splitlines(True)
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(True)
    TOUR.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else sys.exit(__doc__)
