"""The named colours of the scene generators: eight that a person tells apart on dark grey."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 235, 60),
    "green": (40, 205, 70),
    "cyan": (60, 225, 230),
    "blue": (70, 105, 255),
    "purple": (190, 70, 235),
    "white": (245, 245, 245),
}
