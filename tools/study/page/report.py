"""Makes the page of a study in blocks from its stored results alone, and writes it with its figures beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.whole_file import write_whole
from lvr_jax.prism.report.page import image_bytes
from study import result_check, store
from study.blocks import Blocks, chosen
from study.page import shared_section, text
from study.page.estimates import counted, estimate, in_words
from study.page.findings import Checkpoint, Line

PAGE, SHARED = "README.md", "shared.json"
COMMAND = "python tools/reproduce.py --config configs/full_study.py --workdir runs/full_study"
# Blocks of the design with their titles and what they ask. A block that is not here goes by its name; one that a study
# lacks is said to be missing.
TITLES = {
    "lambda_plain": (
        "lambda, plain",
        "The picture is visible to all. Does accuracy follow cosine when the weight of the reconstruction loss is all "
        "that varies, and by which way?",
    ),
    "lambda_bottleneck": (
        "lambda, bottleneck",
        "Only the latents and the marker that opens them see the picture. Latents are fed by teacher forcing, so that "
        "the reconstruction loss alone makes them informative. Does cosine tell who answers here?",
    ),
    "lambda_rollout": (
        "lambda, pooled latents",
        "The bottleneck again, but trained on the latents that the model makes itself (rollout), so that cross-entropy "
        "reaches them, beside teacher forcing of the same eight pooled latents. Does the relation vanish again?",
    ),
    "variants": (
        "the paper's variants", "Noise, decoupling and progressive stages, and the stages with LVR's weight."
    ),
    "targets": (
        "targets",
        "Does what is regressed matter, and does it pass through the network? Lambda is 0.1. `shuffled` is another "
        "token of the row's pictures, drawn anew each step, `random` noise of the same norm; `wrong_box` is the same "
        "region half the picture's height further on, always the same, and as easy to learn as the right one. "
        "`head=glu` puts a latent head on the network; with `head_only` the loss trains that head and nothing below "
        "it. Cosine is with the right box for all of them. Runs with a head were made twice: the first time, as in "
        "released inference code, the first latent was fed back past the head, a fault that was found and mended "
        "before the block was whole.",
    ),
    "routing": (
        "routes by position",
        "A check alone, for both routes update the same matrices, and the last block's queries, output projection and "
        "MLP take the whole loss by either.",
    ),
    "dial": (
        "informativeness dial",
        "A share of the asked digit is black in the picture, in cells of 4 px that the item draws; teacher forcing "
        "feeds latents of the clean picture. Latents with its content could give what the picture lacks: does "
        "reliance grow with the dose?",
    ),
    "rotation": (
        "rotation analogies",
        "Which option is shape 3 turned as shape 2 is against shape 1? The solution is not in view, and its panel, in "
        "a picture that shows it, is the one latent's target: a latent could hold what the input lacks. In "
        "`rotation_query` shape 3 is not in view either, so that a latent alone can tell. Shapes of the scored "
        "questions were held out from all training. The base is another one (`lvr_jax/assets/tiny_rotation`): its "
        "tower was taught to turn shapes, and to name in a solution's panel the place of the option that it equals. "
        "Without that name the answer was at chance even with true latents, with another base and in one run.",
    ),
    "trajectories": ("training time", "Earlier states of the same runs: do cosine and accuracy rise together in time?"),
}
# What a line may run along, the first that varies; and what sets lines of one block apart.
ALONG = ("at", "lambda", "dark", "noise", "until")
APART = ("attention", "feedback")
# Blocks with a table of their own and no line in the headline figure: no one thing varies in steps there.
ASIDE = ("targets", "dial", "routing", "rotation")
PLAINLY = {"full": "plain"}         # values of axes in other words


def write(blocks: Blocks) -> Path:
    """Writes page and figures beside the results; returns the page. The same results give the same bytes.

    ValueError where another page of that name stands: nothing is written over that is not of this study.
    """
    folder = blocks.store.folder.parent
    page = folder / PAGE
    if page.exists() and not page.read_bytes().startswith(text.TITLE.encode()):
        raise ValueError(f"{page}: exists, and is no page of a study; expected config.results in a folder of its own")
    found = gather(blocks)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in text.figures(found).items():
        write_whole(folder / name, image_bytes(figure, "svg"))
    write_whole(page, text.page(found))
    return page


def gather(blocks: Blocks) -> text.Findings:
    """The findings of a study. Raises JsonError, naming the file, for a result that is damaged or of another study."""
    _refuse_strangers(blocks)
    results, _ = blocks.results()
    done, failed = {}, {}
    for result in results:
        if result["status"] == store.FAILED:
            failed[result["name"]] = str(result["error"])
        else:
            done[result["name"]] = _checkpoint(result, blocks)
    every = tuple(_block(name, blocks, done, failed) for name in blocks.config.order)
    predictions, runs = [], blocks.planned()
    for p in blocks.config.predictions:
        asked = {run["name"] for which in ("where", "against") if which in p for run in chosen(runs, p, which)}
        waiting = len(asked - set(done) - set(failed))
        sides = [tuple(done[r["name"]] for r in chosen(results, p, which) if r["name"] in done) if which in p else ()
                 for which in ("where", "against")]  # fmt: skip
        low, high = (float(sign) if p[side] is None else float(p[side]) for side, sign in (("low", "-inf"),
                                                                                            ("high", "inf")))
        predictions.append(text.Prediction(TITLES.get(p["block"], (p["block"],))[0], p["statement"], in_words(p), low,
                                           high, estimate(p, *sides), counted(p, *sides), waiting))  # fmt: skip
    lines = tuple(line for block in every if block.begun and block.name not in ASIDE for line in lines_of(block))
    panels = tuple(line for line in lines if line.along == "lambda")
    dials = (line for block in every if block.begun for line in lines_of(block) if line.along == "dark")
    dial = next(dials, Line("", "dark", ()))
    unplanned = tuple(title for name, (title, _) in TITLES.items() if name not in blocks.config.order)
    return text.Findings(every, unplanned, tuple(predictions), (*lines, *seeds_of(list(done.values()))), panels, dial,
                         _shared(blocks.store.folder.parent / SHARED), COMMAND)  # fmt: skip


def _refuse_strangers(blocks: Blocks) -> None:
    names = {blocks.store.path(run): run.name for run in blocks.runs}
    for path in sorted(blocks.store.folder.glob("*.json")):
        result = read_object(path)
        if result.get("format") != store.FORMAT:
            raise JsonError(f"{path}: format is {result.get('format')!r}, expected {store.FORMAT}")
        if result.get("status") not in (store.DONE, store.FAILED):
            raise JsonError(f"{path}: status is {result.get('status')!r}, expected {store.DONE} or {store.FAILED}")
        named = result.get("blocks")
        if not isinstance(named, list) or not named:
            raise JsonError(f"{path}: blocks is {named!r}, expected a list of names")
        unknown = [name for name in named if name not in blocks.config.order]
        if unknown:
            raise JsonError(f"{path}: is of block {unknown[0]!r}, expected some of {', '.join(blocks.config.order)}")
        result_check.check(result, path, names.get(path))


def _checkpoint(result: Mapping[str, Any], blocks: Blocks) -> Checkpoint:
    """A result as a record, its counts checked against each other."""
    run = next(run for run in blocks.runs if run.name == result["name"])
    path = blocks.store.path(run)
    try:
        found = Checkpoint.of(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise JsonError(f"{path}: {error} cannot be read, expected the fields of tools/study/store.py") from error
    for name, c in found.conditions.items():
        if not (c.own + c.gained - c.lost == c.right and 0 <= c.right <= c.items >= c.own >= 0):
            raise JsonError(f"{path}: conditions.{name} has n {c.items}, clean {c.own}, gained {c.gained}, lost "
                            f"{c.lost} and right {c.right}, expected clean + gained - lost = right")  # fmt: skip
    if not 0 <= found.right <= found.items:
        raise JsonError(f"{path}: audit has {found.right} right of {found.items} items")
    try:
        _ = found.through
    except ValueError as error:
        raise JsonError(f"{path}: {error}") from error
    return found


def _block(name: str, blocks: Blocks, done: Mapping[str, Checkpoint], failed: Mapping[str, str]) -> text.Block:
    title, question = TITLES.get(name, (name.replace("_", " "), ""))
    planned = [run.name for run in blocks.runs if name in run.blocks]
    return text.Block(
        name, title, question, tuple(planned), tuple(done[n] for n in planned if n in done),
        {n: failed[n] for n in planned if n in failed},
    )  # fmt: skip


def _shared(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found = read_object(path)
    try:
        shared_section.section(found, "")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        what = f"{type(error).__name__} ({error})"
        raise JsonError(f"{path}: {what}, expected what tools/transplant.py writes") from error
    return found


def lines_of(block: text.Block) -> list[Line]:
    """The block's checkpoints as lines along the one axis that varies; without one, as points along their cosine.

    Attention and feedback set lines apart, and of states each trained run is a line of its own.
    """
    there = [c for c in block.checkpoints if c.cosine is not None]
    if not there:
        return []
    axes = [name for name in there[0].axes if len({_known(c.axes.get(name)) for c in there}) > 1]
    along = next((name for name in ALONG if name in axes), None)
    others = [name for name in axes if name != along]
    if along is None or (along != "at" and set(others) - set(APART)):
        along, others = "cosine", [name for name in others if name in APART]
    groups: dict[tuple, list[Checkpoint]] = {}
    for c in there:
        groups.setdefault(tuple(_known(c.axes[name]) for name in others), []).append(c)
    if len(groups) == 1:
        return [Line(block.title, along, tuple(there))]
    labels = [" ".join(PLAINLY.get(str(value), str(value)) for value in key) for key in groups]
    return [Line(f"{block.title}: {label}", along, tuple(each)) for label, each in zip(labels, groups.values())]


def seeds_of(every: Sequence[Checkpoint], least: int = 3) -> list[Line]:
    """The seeds of the recipe that has most of them, the first of these."""
    by_recipe: dict[str, list[Checkpoint]] = {}
    for c in every:
        if c.cosine is not None:
            by_recipe.setdefault(c.recipe, []).append(c)
    most = max(by_recipe.values(), key=len, default=[])
    apart = tuple(dataclasses.replace(c, recipe=c.name) for c in most)
    return [Line(f"seeds of {most[0].recipe}", "cosine", apart)] if len(most) >= least else []


def _known(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
