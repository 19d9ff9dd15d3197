"""Draws the rooms of lvr_jax on their floors, and the way of one item through them, from the code's own imports.

    python tools/draw_house.py             # writes lvr_jax/assets/house.svg
    python tools/draw_house.py --check     # exit status 1 if the drawing there is not that of the code

A room is a folder of the package, or a module at its top. Its floor is one above the highest room that it imports, so
that every arrow points down; arrows that follow from others are left out. The stations of an item are records of the
code: one that was renamed or moved is an error.
"""

import argparse
import ast
import functools
import html
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lvr_jax"
DRAWING = PACKAGE / "assets" / "house.svg"

# What an item is, station by station: (module, record, what happens before the next one).
STATIONS = (
    ("data.sample", "Sample", "encode: chat layout, pixels, boxes to tokens"),
    ("data.sample", "Example", "pack and pad to one static shape"),
    ("data.packing", "Batch", "prefill image and question once"),
    ("latents.rollout", "Prefix", "sweep C conditions over one cache"),
    ("latents.rollout", "Trace", "read replies by content and by letter"),
    ("prism.outcomes", "Outcomes", "compare with the clean run, paired"),
    ("prism.verdict", "Verdict", ""),
)

WIDTH, BOX, HEIGHT, GAP, MARGIN = 1200, 232, 106, 52, 24
STATION, STATION_HEIGHT = 150, 64
STYLE = """
  text { font-family: Helvetica, Arial, sans-serif; fill: #222; font-size: 12px }
  .name { font-weight: bold; font-size: 15px }
  .small { font-size: 11px; fill: #555 }
  .title { font-weight: bold; font-size: 17px }
  .room { fill: #eef3f8; stroke: #4a6785 }
  .station { fill: #fdf3e3; stroke: #a5762a }
  .arrow { stroke: #8aa0b5; fill: none; marker-end: url(#head) }
"""


def rooms() -> dict[str, list[Path]]:
    """The files of every room by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts != ("__init__.py",):
            found.setdefault(parts[0].removesuffix(".py"), []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            inside = (node.module or "").split(".")[1:]
            found |= {inside[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{PACKAGE.name}.")}
    return found


def graph() -> dict[str, set[str]]:
    """The rooms that each room imports from, itself left out."""
    found = rooms()
    return {name: {room for path in files for room in imported(path)} & set(found) - {name}
            for name, files in found.items()}  # fmt: skip


def floors(below: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, 0 on the ground. Raises ValueError for a circle of imports."""

    @functools.cache
    def floor(room: str, path: tuple[str, ...] = ()) -> int:
        if room in path:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*path, room))}")
        return max((1 + floor(other, (*path, room)) for other in below[room]), default=0)

    return {room: floor(room) for room in below}


def needed(below: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: (room, room below)."""

    def reach(room: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in below[room]))

    return sorted((room, other) for room, others in below.items() for other in others
                  if not any(other in reach(between) for between in others - {other}))  # fmt: skip


def summary(name: str) -> str:
    """The first line of a room's docstring, up to its first colon or full stop."""
    path = PACKAGE / name / "__init__.py"
    docstring = ast.get_docstring(ast.parse((path if path.exists() else PACKAGE / f"{name}.py").read_text())) or ""
    return docstring.split("\n")[0].split(". ")[0].rstrip(".")


def check_stations() -> None:
    """Raises ValueError if a station of the item's way is not in the code."""
    for module, record, _ in STATIONS:
        tree = ast.parse((PACKAGE / (module.replace(".", "/") + ".py")).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        names |= {t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets
                  if isinstance(t, ast.Name)}  # fmt: skip
        if record not in names:
            raise ValueError(f"lvr_jax.{module} has no {record}; expected the stations of tools/draw_house.py to exist")


def _text(x: float, y: float, line: str, kind: str = "", anchor: str = "middle") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{of}>{html.escape(line)}</text>'


def _lines(x: float, y: float, text: str, width: int, kind: str = "small") -> Iterable[str]:
    for n, line in enumerate(textwrap.wrap(text, width)):
        yield _text(x, y + 14 * n, line, kind)


def draw() -> str:
    """The drawing as SVG."""
    check_stations()
    below, files = graph(), rooms()
    level = floors(below)
    top = max(level.values())
    place, parts = {}, []
    for floor in range(top + 1):
        row = sorted(room for room in level if level[room] == floor)
        free = (WIDTH - 2 * MARGIN - len(row) * BOX) / (len(row) + 1)
        for n, room in enumerate(row):
            place[room] = (MARGIN + free * (n + 1) + BOX * n, 40 + (top - floor) * (HEIGHT + GAP))
    for room, other in needed(below):
        (x, y), (x2, y2) = place[room], place[other]
        middle = (y + HEIGHT + y2) / 2
        start, end = f"{x + BOX / 2:.0f} {y + HEIGHT:.0f}", f"{x2 + BOX / 2:.0f} {y2 - 3:.0f}"
        parts.append(f'<path class="arrow" d="M {start} C {x + BOX / 2:.0f} {middle:.0f}, {x2 + BOX / 2:.0f} '
                     f'{middle:.0f}, {end}"/>')
    for room, (x, y) in sorted(place.items()):
        parts.append(f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        parts.append(_text(x + BOX / 2, y + 22, room, "name"))
        parts += _lines(x + BOX / 2, y + 40, summary(room), 38)
        number = len(files[room])
        parts.append(_text(x + BOX / 2, y + HEIGHT - 6, f"{number} file{'s' * (number > 1)}", "small"))
    y = 40 + (top + 1) * (HEIGHT + GAP)
    parts.append(_text(MARGIN, y + 10, "One item's way through it", "title", "start"))
    step = (WIDTH - 2 * MARGIN - STATION) / (len(STATIONS) - 1)
    for n, (module, record, then) in enumerate(STATIONS):
        x = MARGIN + n * step
        parts.append(f'<rect class="station" x="{x:.0f}" y="{y + 30}" width="{STATION}" height="{STATION_HEIGHT}"'
                     ' rx="6"/>')
        parts.append(_text(x + STATION / 2, y + 56, record, "name"))
        parts.append(_text(x + STATION / 2, y + 78, module, "small"))
        if then:
            middle = y + 30 + STATION_HEIGHT / 2
            parts.append(f'<path class="arrow" d="M {x + STATION:.0f} {middle:.0f} H {x + step - 3:.0f}"/>')
            parts += _lines(x + (STATION + step) / 2, y + 50 + STATION_HEIGHT, then, 21)
    height = y + STATION_HEIGHT + 96
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" fill="#8aa0b5"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(MARGIN, 22, "The rooms of lvr_jax: an arrow is an import, and all point down", "title", "start"),
        *parts, "</svg>", "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the drawing is stale")
    options = parser.parse_args(arguments)
    drawn = draw()
    if options.check:
        same = DRAWING.exists() and DRAWING.read_text() == drawn
        print(f"{DRAWING.relative_to(ROOT)}: {'is that of the code' if same else 'is stale, run tools/draw_house.py'}")
        return 0 if same else 1
    DRAWING.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
