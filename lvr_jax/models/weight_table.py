"""Reads rules that map Hugging Face tensors to parameters, in both directions.

A rule reads like a specification: the Hugging Face name (`{}` is a layer number), our path, and how the axes of the
one become the axes of the other, "(N H) D -> D N H". Parameters of all layers are stacked along a leading L axis;
parentheses join axes that Hugging Face keeps as one. The rules themselves belong to a family (qwen2_5_vl/params.py).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Rule = tuple[str, str, str]     # Hugging Face name, our path, axes there -> axes here

# transformers writes these names from 4.52 on; rules use those of the hub's files.
RENAMED = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one Hugging Face tensor goes: path "text/blocks/q", layer (None if not stacked), and its axes."""

    path: str
    layer: int | None
    hf_shape: tuple[int, ...]
    split: tuple[int, ...]        # the Hugging Face tensor with every axis apart
    order: tuple[int, ...]        # transposition of `split`
    shape: tuple[int, ...]        # our shape of one layer
    leads: tuple[tuple[int, int] | None, ...]   # for each of our axes that is the first part of a Hugging Face axis:
                                                # (its place in `split`, that axis)

    @property
    def same(self) -> bool:
        """Whether both sides hold the same array, so that rows of the one are rows of the other."""
        return self.hf_shape == self.shape and self.order == tuple(range(len(self.split)))

    def from_hf(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.split).transpose(self.order).reshape(self.shape)

    def cut(self, x: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        """from_hf(x)[index], which touches no more of x (a view of a file) than those slices of its own axes.

        Slices have a start and a stop. An axis that is not the first of its Hugging Face axis (H of "(N H)") is cut
        only afterwards.
        """
        window, split, shape = [slice(None)] * x.ndim, list(self.split), list(self.shape)
        rest = list(index)
        for axis, (mine, lead) in enumerate(zip(index, self.leads)):
            if lead is None:
                continue
            part, there = lead
            inner = self.hf_shape[there] // self.split[part]
            window[there] = slice(mine.start * inner, mine.stop * inner)
            split[part] = shape[axis] = mine.stop - mine.start
            rest[axis] = slice(None)
        return x[tuple(window)].reshape(split).transpose(self.order).reshape(shape)[tuple(rest)]

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        apart = x.reshape([self.split[i] for i in self.order])
        return apart.transpose(np.argsort(self.order)).reshape(self.hf_shape)


def canonical(name: str) -> str:
    """A tensor name in either naming of Hugging Face -> the naming of the hub's files, which rules use."""
    # Training with PEFT saves the whole network under its wrapper's name.
    name = name.removeprefix("base_model.model.")
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _axes(text: str) -> list[list[str]]:
    """"(N H) D" -> [["N", "H"], ["D"]]"""
    return [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\S+", text)]


def expand(rules: Sequence[Rule], layers: int, sizes: Mapping[str, int]) -> Iterator[tuple[str, Slot]]:
    """Every tensor that the rules describe, by canonical Hugging Face name; sizes: of each axis letter."""
    for hf, path, spec in rules:
        there, here = (_axes(side) for side in spec.split("->"))
        split, target = sum(there, []), sum(here, [])
        group = lambda axes: tuple(math.prod(sizes[a] for a in part) for part in axes)  # noqa: E731
        first = {part[0]: (split.index(part[0]), axis) for axis, part in enumerate(there)}
        leads = tuple(first.get(part[0]) if len(part) == 1 else None for part in here)
        shape = tuple(sizes[a] for a in split), tuple(split.index(a) for a in target), group(here), leads
        for layer in range(layers) if "{}" in hf else [None]:
            yield hf.format(layer), Slot(path, layer, group(there), *shape)


def leaves(slots: Mapping[str, Slot]) -> dict[str, list[tuple[str, Slot]]]:
    """Parameters by path: the Hugging Face tensors (name, slot) that make each, in the order of layers."""
    found: dict[str, list[tuple[str, Slot]]] = {}
    for name, slot in slots.items():
        found.setdefault(slot.path, []).append((name, slot))
    return found


def shapes(slots: Mapping[str, Slot]) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by path: that of one layer, with a leading L where layers are stacked."""
    return {
        path: slot.shape if slot.layer is None else (len(members), *slot.shape)
        for path, members in leaves(slots).items()
        for slot in [members[0][1]]
    }
