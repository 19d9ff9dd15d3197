"""Polyominoes with four distinct rotations, and those of them that training never sees.

A shape is its cells, sorted (row, column) pairs whose smallest row and column are 0. Shapes that are rotations of one
another are one shape here and mirror images are two, since a rotation task can tell them apart; but held-out shapes are
held out with their mirror images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

Cells = tuple[tuple[int, int], ...]

GRID = 4                                # shapes fit a GRID x GRID square
FAMILIES = {4: "tetromino", 5: "pentomino", 6: "hexomino", 7: "heptomino"}
HELD_OUT = {5: 2, 6: 5}                 # by number of cells: how many shapes (up to mirroring) training never sees
HARD_SIZE = 7                           # and none of this size at all


def normalise(cells: Iterable[tuple[int, int]]) -> Cells:
    """Moves cells to the upper left corner and sorts them."""
    cells = list(cells)
    top, left = min(r for r, _ in cells), min(c for _, c in cells)
    return tuple(sorted((r - top, c - left) for r, c in cells))


def rotate(cells: Cells, quarters: int) -> Cells:
    """Turns clockwise by that many quarters."""
    for _ in range(quarters % 4):
        cells = normalise((c, -r) for r, c in cells)
    return cells


def shape_of(cells: Cells) -> Cells:
    """The one name of all rotations of `cells`."""
    return min(rotate(cells, quarters) for quarters in range(4))


def free_shape_of(cells: Cells) -> Cells:
    """The one name of all rotations and mirror images of `cells`."""
    return min(shape_of(cells), shape_of(normalise((r, -c) for r, c in cells)))


def fits(cells: Cells) -> bool:
    """Whether the cells lie within the grid."""
    return max(max(cell) for cell in cells) < GRID


def neighbours(cells: Cells) -> set[tuple[int, int]]:
    """The empty cells that share an edge with `cells`."""
    return {(r + dr, c + dc) for r, c in cells for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))} - set(cells)


def connected(cells: Cells) -> bool:
    """Whether every cell can be reached from every other over shared edges."""
    reached, front = set(), {cells[0]}
    while front:
        reached |= front
        front = {cell for cell in neighbours(tuple(front)) if cell in cells} - reached
    return len(reached) == len(cells)


@functools.cache
def _fixed(size: int) -> frozenset[Cells]:
    """All polyominoes of `size` cells that fit the grid, rotations and mirror images apart."""
    if size == 1:
        return frozenset({((0, 0),)})
    # Every polyomino that fits has a cell whose removal leaves one that fits, so growing within the grid finds all.
    grown = (normalise((*cells, cell)) for cells in _fixed(size - 1) for cell in neighbours(cells))
    return frozenset(cells for cells in grown if fits(cells))


@functools.cache
def asymmetric_shapes(size: int) -> tuple[Cells, ...]:
    """The shapes of `size` cells with four distinct rotations, sorted."""
    names = {shape_of(cells) for cells in _fixed(size)}
    return tuple(sorted(name for name in names if len({rotate(name, quarters) for quarters in range(4)}) == 4))


@functools.cache
def held_out() -> frozenset[Cells]:
    """The shapes (with their mirror images) of up to six cells that training never sees; the same in every run."""
    chosen = set()
    for size, count in HELD_OUT.items():
        free = sorted({free_shape_of(shape) for shape in asymmetric_shapes(size)})
        picks = np.random.default_rng([20240112, size]).choice(len(free), count, replace=False)
        wanted = {free[pick] for pick in picks}
        chosen |= {shape for shape in asymmetric_shapes(size) if free_shape_of(shape) in wanted}
    return frozenset(chosen)


def is_held_out(cells: Cells) -> bool:
    """Whether a shape is kept for evaluation, in any rotation."""
    return len(cells) >= HARD_SIZE or shape_of(cells) in held_out()


@functools.cache
def training_shapes() -> tuple[Cells, ...]:
    """The shapes that training scenes draw from."""
    return tuple(shape for size in FAMILIES for shape in asymmetric_shapes(size) if not is_held_out(shape))


@functools.cache
def held_out_shapes() -> tuple[Cells, ...]:
    """The shapes that only evaluation scenes show, smallest first."""
    return tuple(sorted(held_out(), key=lambda shape: (len(shape), shape)))
