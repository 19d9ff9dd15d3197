"""Shows single items: the picture as the model saw it, the box, and where each latent points."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lvr_jax.data.images import MERGE, PATCH
from lvr_jax.data.sample import Box
from lvr_jax.latents import regions
from lvr_jax.prism.measure import capture
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.report.figures import STYLE

MOST = 12       # latents shown of an item


def draw(items: Items, index: int, capture_folder, fed: int) -> Figure:
    """The first image with its box, then for each latent fed a heat map of its cosine with the image's tokens.

    fed: latents of the item; the nearest token is framed. Only the first block of each stage was kept.
    """
    sample, example = items.prompt(index)
    picture, grid = first_picture(example.patches, example.grids), example.grids[0]
    similarity = capture.similarity(capture_folder, items.ids[index])
    c = items.subject.config.vision
    total = int(grid.astype(np.int64).prod()) // MERGE**2
    slots = regions.slots(np.arange(total), example.grids, merge=c.merge, window=c.window,
                          elsewhere=False)  # fmt: skip
    maps = [m[slots].reshape(grid[1] // MERGE, grid[2] // MERGE) for m in similarity if np.any(m)][:MOST]
    boxes = [b for b, i in zip(sample.boxes, sample.box_images or (0,) * len(sample.boxes)) if i == 0]
    return drawn(picture, maps, boxes)


def drawn(picture: np.ndarray, maps: Sequence[np.ndarray], boxes: Sequence[Box] = (), title: str = "") -> Figure:
    """A picture [H, W, 3] with boxes (0..1), and for each latent its cosines [rows, columns] with the image's tokens,
    the nearest one framed."""
    columns = 3
    rows = -(-(1 + len(maps)) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 1.85 * rows + 0.2), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        axes[0].imshow(picture)
        axes[0].set_title("image and box" if len(boxes) else "image", fontsize=9)
        height, width = picture.shape[:2]
        for x0, y0, x1, y1 in boxes:
            for colour, line in (("black", 3.5), ("#ffd60a", 1.8)):
                axes[0].add_patch(Rectangle((x0 * width - 0.5, y0 * height - 0.5), (x1 - x0) * width,
                                            (y1 - y0) * height, fill=False, ec=colour, lw=line))  # fmt: skip
        for j, (axis, heat) in enumerate(zip(axes[1:], maps)):
            axis.imshow(picture.mean(-1), cmap="gray", alpha=0.9)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(heat, cmap="magma", alpha=0.55, extent=extent, interpolation="nearest")
            r, col = np.unravel_index(np.argmax(heat), heat.shape)
            x, y = width / heat.shape[1], height / heat.shape[0]
            axis.add_patch(Rectangle((col * x - 0.5, r * y - 0.5), x, y, fill=False, ec="white", lw=1.5))
            axis.set_title(f"latent {j}: {heat.min():.2f} to {heat.max():.2f}", fontsize=8)
        for axis in axes:
            axis.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=8, ha="left", x=0.02, family="monospace")
    return figure


def first_picture(patches: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Patches [P, 588] of the first image back to uint8 [H, W, 3]."""
    _, h, w = grids[0].tolist()
    cut = patches[: h * w].reshape(h // MERGE, w // MERGE, MERGE, MERGE, 3, PATCH, PATCH)
    return cut.transpose(0, 2, 5, 1, 3, 6, 4).reshape(h * PATCH, w * PATCH, 3)
