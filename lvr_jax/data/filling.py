"""Chooses which of the examples that wait share the next row.

Examples are never cut, so a row is filled by choosing. The oldest waiting example always goes (none waits for ever),
and the rest of the row is a subset-sum problem over the others, solved exactly: sets of reachable sums are the bits of
Python integers, which costs about 0.1 ms for 32 waiting examples and 16,384 tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lvr_jax.data.packing import Budget

RESOURCES = tuple(field.name for field in dataclasses.fields(Budget))


def fill_row(sizes: Sequence[Budget], budget: Budget, max_per_row: int | None = None) -> list[int]:
    """Chooses a row: ascending indices into `sizes`, always with 0, that fill the scarcest resource of `budget` best.

    Every size must fit the budget alone. Depends on nothing but its arguments.
    """
    limit = max_per_row or len(sizes)
    if limit == 1 or len(sizes) == 1:
        return [0]
    scarce = max(RESOURCES, key=lambda name: _share(sum(getattr(s, name) for s in sizes), getattr(budget, name)))
    chosen = _best_subset([getattr(s, scarce) for s in sizes], getattr(budget, scarce))
    if len(chosen) <= limit and budget.holds(sum((sizes[i] for i in chosen), Budget(0, 0))):
        return chosen
    return _largest_first(sizes, budget, limit)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _best_subset(lengths: Sequence[int], room: int) -> list[int]:
    """Item 0 and those others that fill `room` best; among equals the older ones."""
    room -= lengths[0]
    mask = (1 << room + 1) - 1
    reachable = [1]         # after each item: bit n is set if some of the items so far sum to n
    for length in lengths[1:]:
        reachable.append((reachable[-1] | reachable[-1] << length) & mask)
    left = reachable[-1].bit_length() - 1
    chosen = [0]
    for i in range(len(lengths) - 1, 0, -1):
        if not reachable[i - 1] >> left & 1:
            chosen.append(i)
            left -= lengths[i]
    return sorted(chosen)


def _largest_first(sizes: Sequence[Budget], budget: Budget, limit: int) -> list[int]:
    """Adds examples greedily, the largest first: for two scarce resources, or a limited number of examples."""
    need = [max(_share(getattr(s, name), getattr(budget, name)) for name in RESOURCES) for s in sizes]
    chosen, used = [0], sizes[0]
    for i in sorted(range(1, len(sizes)), key=lambda i: (-need[i], i)):
        if len(chosen) < limit and budget.holds(used + sizes[i]):
            chosen.append(i)
            used += sizes[i]
    return sorted(chosen)
