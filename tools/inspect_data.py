"""Shows examples of a config token by token, before a long run is spent on them.

    python tools/inspect_data.py --config configs/masked_input.py:tiny --index 0,1 --output inspected
    python tools/inspect_data.py --config configs/data/digit_search.py \\
        --config.data.tokenizer=tests/golden/tokenizer.json

Writes, for each example, `<source>-<index>.png` (the pictures as the model gets them, with the boxes, the merged tokens
that the latents take, numbered in the order of the reply, and the sequence as a strip) and `<source>-<index>.txt` (the
table of its tokens, which is printed as well). Any experiment will do, whose checkpoint need not be more than its
config.json and tokenizer, and any config with `data` fields alone (lvr_jax/data/from_config.py).

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import io
import sys
import textwrap
from pathlib import Path

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("inspect_data")

import matplotlib
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from lvr_jax.checkpoints import CheckpointError
from lvr_jax.command.arguments import parser
from lvr_jax.data import from_config
from lvr_jax.data.boxes import expand
from lvr_jax.data.images import FACTOR
from lvr_jax.data.packing import Geometry
from lvr_jax.data.sample import ROLE_ANSWER, ROLE_IMAGE, ROLE_LATENT, ROLE_TEXT, DataError, Example, Sample
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.files.lock import locked
from lvr_jax.files.whole_file import write_whole
from lvr_jax.models.interface import ConfigError
from lvr_jax.multihost.hosts import Stopped, StopSignal
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.experiment import data_of
from lvr_jax.training.input import sources_of

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False      # a dollar in a question is a dollar
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Patch, Rectangle  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file with `data` fields.")
SOURCE = flags.DEFINE_string("source", None, "Name of the source; default: the first one.")
INDEX = flags.DEFINE_list("index", ["0"], "Numbers of the examples in that source.")
OUTPUT = flags.DEFINE_string("output", "inspected", "Folder for pictures and tables.")
FULL = flags.DEFINE_bool("full", False, "Print every image placeholder, not only the first and last of a run.")

ROLES = {ROLE_TEXT: "text", ROLE_IMAGE: "image", ROLE_LATENT: "latent", ROLE_ANSWER: "answer"}
ROLE_COLOURS = {ROLE_TEXT: "#9aa0a6", ROLE_IMAGE: "#5b8def", ROLE_LATENT: "#fbbc04", ROLE_ANSWER: "#34a853"}
STAGE_COLOURS = ("#e8710a", "#c2185b", "#7b1fa2", "#00897b")
COLUMNS = ("index", "id", "text", "role", "loss", "stage", "group", "slot", "time", "row", "col")


def token_rows(example: Example, tokenizer) -> list[tuple]:
    """One row of COLUMNS for each token."""
    columns = zip(example.tokens.tolist(), example.role.tolist(), example.loss_mask.tolist(), example.stage.tolist(),
                  example.group.tolist(), example.vision_slot.tolist(), example.positions.T.tolist())  # fmt: skip
    text = lambda token: repr(tokenizer.decode([token]))[1:-1].replace(" ", "·")  # noqa: E731
    return [
        (t, token, text(token), ROLES[role], "x" if loss else "", stage or "", group or "",
         slot if slot >= 0 else "", *position)
        for t, (token, role, loss, stage, group, slot, position) in enumerate(columns)
    ]  # fmt: skip


def table(example: Example, tokenizer, full: bool = False) -> str:
    """The rows as text; the inner placeholders of an image are left out unless `full`."""
    rows = token_rows(example, tokenizer)
    image = [row[3] == "image" for row in rows]
    shown: list[tuple] = [COLUMNS]
    for t, row in enumerate(rows):
        inner = 0 < t < len(rows) - 1 and image[t - 1] and image[t] and image[t + 1]
        if full or not inner:
            shown.append(row)
        elif shown[-1][0] != "...":
            shown.append(("...", *[""] * (len(COLUMNS) - 1)))
    widths = [max(len(str(row[i])) for row in shown) for i in range(len(COLUMNS))]
    # text is aligned to the left, numbers to the right
    lines = ("  ".join(f"{row[i]!s:{'<' if i in (2, 3, 4) else '>'}{widths[i]}}" for i in range(len(row)))
             for row in shown)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def pictures(patches: np.ndarray, grids: np.ndarray) -> list[np.ndarray]:
    """Patches [P, 588] back to images uint8 [H, W, 3]: what is drawn is what the model gets."""
    found, start = [], 0
    for _, h, w in grids.tolist():
        cut = patches[start : start + h * w].reshape(h // 2, w // 2, 2, 2, 3, 14, 14)
        found.append(cut.transpose(0, 2, 5, 1, 3, 6, 4).reshape(h * 14, w * 14, 3))
        start += h * w
    return found


def latent_cells(example: Example) -> list[tuple[int, int, list[int]]]:
    """(number in the reply, stage, merged tokens that it takes) of each slot, free ones with no tokens."""
    found = []
    for number, t in enumerate(np.flatnonzero(example.stage > 0).tolist()):
        pooled = example.latent_pool[example.latent_pool[:, 0] == t, 1].tolist()
        own = pooled or ([int(example.vision_slot[t])] if example.vision_slot[t] >= 0 else [])
        found.append((number, int(example.stage[t]), own))
    return found


def draw(sample: Sample, example: Example, template, title: str):
    """A column for each image, with a second row where latents come from other images; the sequence below."""
    seen = pictures(example.patches, example.grids)
    targets = pictures(example.target_patches, example.grids) if example.target_patches is not None else None
    rows = 1 if targets is None else 2
    figure, axes = plt.subplots(
        rows + 1, len(seen), squeeze=False, figsize=(max(8, 6 * len(seen)), 5.5 * rows + 1.6),
        height_ratios=[5] * rows + [0.5], layout="constrained",
    )  # fmt: skip
    for i, image in enumerate(seen):
        _draw_image(axes[0, i], image, f"image {i}, as the model sees it")
        if targets is not None:
            _draw_image(axes[1, i], targets[i], f"image {i}, where latents come from")
        _draw_latents(axes[rows - 1, i], i, example)
        for axis in axes[:rows, i]:
            _draw_boxes(axis, i, sample, template, image.shape)
    for axis in axes[rows, 1:]:
        axis.remove()
    strip = axes[rows, 0]
    strip.set_subplotspec(axes[rows, 0].get_gridspec()[rows, :])
    _draw_strip(strip, example)
    names = [f"stage {k + 1}: {stage.name}" for k, stage in enumerate(template.stages)]
    stages = [Patch(color=colour, label=name) for colour, name in zip(STAGE_COLOURS, names)]
    roles = [Patch(color=colour, label=ROLES[role]) for role, colour in ROLE_COLOURS.items()]
    figure.legend(handles=roles + stages, loc="outside lower center", ncols=4 + len(stages), fontsize=8, frameon=False)
    # Matplotlib's own wrapping reads dollars as mathematics whatever parse_math says (3.11).
    figure.suptitle(textwrap.fill(title, 150, replace_whitespace=False), fontsize=9)
    return figure


def _draw_image(axis, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axis.imshow(image, interpolation="nearest")
    axis.set_title(f"{title}: {width} x {height} px, {width // FACTOR} x {height // FACTOR} tokens", fontsize=8)
    for ticks, side in ((axis.set_xticks, width), (axis.set_yticks, height)):
        ticks(np.arange(0, side + 1, FACTOR) - 0.5, labels=[])
    axis.grid(color="white", linewidth=0.4, alpha=0.5)
    axis.tick_params(length=0)


def _draw_boxes(axis, number: int, sample: Sample, template, shape) -> None:
    """The record's box as a line, and the boxes of stages that scale it, dashed."""
    height, width = shape[:2]
    where = sample.box_images or (0,) * len(sample.boxes)
    scaled = [(k, s.box_scale) for k, s in enumerate(template.stages) if s.box_scale not in (None, 1.0)]
    for box in (box for box, image in zip(sample.boxes, where) if image == number):
        lines = [(box, "#ffeb3b", "-")]
        lines += [(expand(box, scale), STAGE_COLOURS[k % 4], "--") for k, scale in scaled]
        for (x0, y0, x1, y1), colour, style in lines:
            corner = (x0 * width - 0.5, y0 * height - 0.5)
            axis.add_patch(Rectangle(corner, (x1 - x0) * width, (y1 - y0) * height, fill=False, edgecolor=colour,
                                     linestyle=style, linewidth=1.6))  # fmt: skip


def _draw_latents(axis, number: int, example: Example) -> None:
    sizes = (example.grids.astype(int).prod(axis=1) // 4).tolist()
    first, across = sum(sizes[:number]), int(example.grids[number, 2]) // 2
    many = (example.stage > 0).sum() > 80       # numbers would be unreadable
    font = min(6, max(3, 90 / example.grids[number, 1:].max() * 2))
    for k, stage, tokens in latent_cells(example):
        for token in tokens:
            if first <= token < first + sizes[number]:
                row, column = divmod(token - first, across)
                inset = 1.5 * stage         # stages that take the same token stay visible, one inside the other
                corner = (column * FACTOR - 0.5 + inset, row * FACTOR - 0.5 + inset)
                colour, side = STAGE_COLOURS[(stage - 1) % 4], FACTOR - 2 * inset
                axis.add_patch(Rectangle(corner, side, side, color=colour, alpha=0.12, lw=0))
                axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, lw=1))
                if not many:        # each stage's number at a height of its own
                    at = (corner[0] + 1, corner[1] + 1 + 7 * ((stage - 1) % 3))
                    axis.text(*at, str(k), fontsize=font, color="white", va="top",
                              bbox={"facecolor": colour, "pad": 0.6, "lw": 0})  # fmt: skip


def _draw_strip(axis, example: Example) -> None:
    """Runs of tokens of one role, with the slots below and the targets of cross-entropy above."""
    for role, colour in ROLE_COLOURS.items():
        axis.broken_barh(_runs(example.role == role), (0, 1), color=colour, lw=0)
    axis.broken_barh(_runs(example.loss_mask), (1.15, 0.3), color="black", lw=0)
    for stage in range(1, 1 + int(example.stage.max())):
        axis.broken_barh(_runs(example.stage == stage), (-0.45, 0.3), color=STAGE_COLOURS[(stage - 1) % 4], lw=0)
    axis.set(xlim=(0, example.num_tokens), ylim=(-0.55, 1.55), yticks=[-0.3, 0.5, 1.3])
    axis.set_yticklabels(["slots", "role", "loss"])
    axis.set_xlabel("token", fontsize=8)
    axis.tick_params(labelsize=7)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int))).reshape(-1, 2)
    return [(int(start), int(stop - start)) for start, stop in edges]


def describe(sample: Sample, example: Example, data: from_config.DataConfig) -> str:
    """The first lines of a table."""
    size, budget = Geometry(data.merge, data.window).size(example), data.settings.budget
    return (
        f"{sample.id}: {example.num_tokens} tokens, {example.num_patches} patches, {size.windows} windows, "
        f"{(example.stage > 0).sum()} latents; {'fits' if budget.holds(size) else 'LARGER THAN'} a row of "
        f"{budget.tokens} tokens and {budget.windows} windows\n"
        f"question: {' '.join(sample.question.split())}\n"
        f"answer: {sample.answer}   letter: {sample.letter}\n"
        f"boxes: {[tuple(round(v, 4) for v in box) for box in sample.boxes]}"
    )


def inspect(
    data: from_config.DataConfig, mask_boxes: bool, name: str | None, indices: list[str], output: Path, full: bool,
    stop: StopSignal,
) -> None:
    """Writes pictures and token tables of the examples asked for."""
    sources = {source.name: source.data for source in sources_of(data, mask_boxes)}
    name = next(iter(sources)) if name is None else name
    if name not in sources:
        raise DataError(f"source {name!r}: expected one of {', '.join(sources)}")
    tokenizer = from_config.make_tokenizer(data)
    encode = from_config.make_encode(data, tokenizer)
    output.mkdir(parents=True, exist_ok=True)
    for index in indices:
        stop.check()
        if not index.isdecimal() or int(index) >= len(sources[name]):
            raise DataError(f"--index {index}: source {name!r} has {len(sources[name])} examples, numbered from 0")
        sample = sources[name][int(index)]
        example = encode(sample)
        head = describe(sample, example, data)
        text = f"{head}\n\n{table(example, tokenizer, full)}\n"
        write_whole(output / f"{name}-{index}.txt", text)
        figure = draw(sample, example, TEMPLATES[data.template], "\n".join(head.split("\n")[:3]))
        picture = io.BytesIO()
        figure.savefig(picture, dpi=130)
        plt.close(figure)
        write_whole(output / f"{name}-{index}.png", picture.getvalue())
        print(f"{text}\nwritten: {output / f'{name}-{index}'}.png and .txt")


def main(arguments) -> int:
    stop = StopSignal()
    try:
        if len(arguments) > 1:
            raise DataError(f"argument {arguments[1]!r}: not expected (see --help)")
        config = CONFIG.value
        if config is None or "data" not in config:
            raise DataError("--config: expected a config file with `data` fields")
        if not OUTPUT.value:
            raise DataError("--output: empty, expected a folder for pictures and tables")
        experiment = "init" in config
        data = data_of(config) if experiment else from_config.DataConfig.read(config.data)
        masked = experiment and config.mask_boxes
        with locked(OUTPUT.value):
            inspect(data, masked, SOURCE.value, INDEX.value, Path(OUTPUT.value), FULL.value, stop)
    except (CheckpointError, ConfigError, ConfigFieldError, DataError) as error:
        return _refused(error)
    except (Stopped, OSError) as error:
        return _refused(error, 1)
    return 0


def _refused(error: object, status: int = 2) -> int:
    print(f"inspect_data: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    app.run(lambda arguments: sys.exit(main(arguments)), flags_parser=parser("inspect_data", CONFIG))
