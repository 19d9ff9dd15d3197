"""All probes of one capture: letters and contents at every position and layer, and the paper's pair of positions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lvr_jax.prism.measure.capture import Capture
from lvr_jax.prism.probes.capacity import capacity_ladder
from lvr_jax.prism.probes.content import Questions, read_content
from lvr_jax.prism.probes.controls import CONTROL_KINDS, control_labels
from lvr_jax.prism.probes.folds import stratified_folds
from lvr_jax.prism.probes.logistic_probe import logistic_probe
from lvr_jax.prism.probes.probes import baselines, decodability, gap
from lvr_jax.prism.statistics.intervals import Interval

# The paper's positions: (a) the answer-decoding state, (b) the last latent output, and the question before them.
A, B, QUESTION = "answer", "last_latent", "question"
# What is fed as the first latent.
H0 = "h0"


@dataclasses.dataclass(frozen=True)
class Settings:
    """folds: how many; controls: labelings of each kind; control: kind for the grid; ladder: PCA ranks to climb
    (none: no ladder); content: which probes for what the answer says (content.KINDS_OF_PROBE); level, draws, seed: of
    intervals and shuffles (folds are always split by seed 42)."""

    folds: int = 5
    controls: int = 20
    control: str = "marginal"
    ladder: tuple[int, ...] = (1, 4, 16, 64)
    content: str = "auto"
    level: float = 0.95
    draws: int = 2000
    seed: int = 0


def read_out(
    capture: Capture, options: np.ndarray, categories: np.ndarray, how: Settings, questions: Questions | None = None
) -> dict:
    """Everything that probes say, ready for JSON but for dataclasses and arrays.

    questions: what the content probes need (None: letters alone); content: see `content.read_content`.
    grid: position -> items, and by layer accuracy, control, selectivity; paper: the logistic probe at (a), (b) and the
    question mean over the items that have (a) and (b); gap; baselines; controls; ladder. A probe that cannot be fitted
    (a letter that occurs once) is a `reason` instead.
    """
    found = dict(_grid(capture, categories, how))
    return {
        "grid": {name: found[name] for name in capture.positions},
        "pair": _pair(capture, options, categories, how),
        "content": None if questions is None else read_content(
            capture, questions, how.content, pair=(A, B), question=QUESTION, h0=H0, folds=how.folds,
            controls=how.controls, level=how.level, draws=how.draws, seed=how.seed,
        ),
    }  # fmt: skip


def _grid(capture: Capture, categories, how: Settings):
    """Positions that the same items have are probed at once."""
    groups: dict[bytes, list[str]] = {}
    for p, name in enumerate(capture.positions):
        groups.setdefault(capture.valid[:, p].tobytes(), []).append(name)
    for names in groups.values():
        valid = capture.has(*names)
        found = {"items": int(valid.sum()), "without": int((~valid).sum())}
        try:
            folds = stratified_folds(capture.label, how.folds, valid=valid)
        except ValueError as error:
            yield from ((name, {**found, "reason": str(error)}) for name in names)
            continue
        n_classes, controls = _controls(capture, categories, how.control, how)
        x = np.moveaxis(capture.states[:, [capture.positions.index(name) for name in names]], 0, 2)   # [P, L, I, D]
        probes = decodability(x, capture.label, controls, folds, n_classes=n_classes, level=how.level,
                              draws=how.draws, seed=how.seed)  # fmt: skip
        for p, name in enumerate(names):
            yield name, found | {
                "accuracy": _row(probes.accuracy, p), "selectivity": _row(probes.selectivity, p),
                "control": probes.control[p], "control_p": probes.control_p[p],
            }  # fmt: skip


def _row(interval: Interval, p: int) -> Interval:
    return Interval(interval.point[p], interval.low[p], interval.high[p])


def _controls(capture: Capture, categories, kind: str, how: Settings):
    n_classes = int(capture.label.max()) + 1
    return n_classes, control_labels(kind, capture.label, how.controls, n_classes=n_classes, categories=categories,
                                     seed=how.seed)  # fmt: skip


def _pair(capture: Capture, options, categories, how: Settings) -> dict:
    """(a) against (b), last layer, on the items that have both."""
    valid = capture.has(A, B)
    found = {"items": int(valid.sum()), "dropped": int((~valid).sum())}
    try:
        folds = stratified_folds(capture.label, how.folds, valid=valid)
        paper = {name: logistic_probe(capture.at(name)[valid], capture.label[valid], k=how.folds, level=how.level,
                                      draws=how.draws) for name in (A, B, QUESTION)}  # fmt: skip
    except ValueError as error:
        return {**found, "reason": str(error)}
    x = np.stack([capture.at(A), capture.at(B)])
    interval = {"level": how.level, "draws": how.draws, "seed": how.seed}
    controls: dict[str, dict] = {}
    correct: np.ndarray | Sequence = ()
    for kind in CONTROL_KINDS:
        n_classes, labels = _controls(capture, categories, kind, how)
        probes = decodability(x, capture.label, labels, folds, n_classes=n_classes, **interval)
        correct = probes.correct
        controls[kind] = {name: {"control": probes.control[p], "selectivity": _row(probes.selectivity, p),
                                 "p": probes.control_p[p]} for p, name in enumerate((A, B))}  # fmt: skip
    ridge = {name: _row(probes.accuracy, p) for p, name in enumerate((A, B))}
    ladder = {}
    if how.ladder:
        n_classes, labels = _controls(capture, categories, how.control, how)
        ladder = {name: capacity_ladder(capture.at(name), capture.label, labels, folds, n_classes=n_classes,
                                        ranks=how.ladder, widths=(64, 1024), seed=how.seed)
                  for name in (A, B)}  # fmt: skip
    kept = ("accuracy", "accuracy_std", "by_fold", "by_item", "cross_entropy", "entropy", "mi_empirical", "mi_uniform",
            "mi_interval")  # fmt: skip
    hits = {name: (probe.predicted == capture.label[valid]).astype(float) for name, probe in paper.items()}
    return found | {
        "logistic": {name: {field: getattr(probe, field) for field in kept} for name, probe in paper.items()},
        "gap": Interval(paper[A].accuracy - paper[B].accuracy, *_limits(gap(hits[A], hits[B], **interval))),
        "ridge": ridge, "ridge_gap": gap(correct[0], correct[1], **interval), "controls": controls, "ladder": ladder,
        "baselines": baselines(capture.label, folds, options, capture.at(QUESTION), n_classes=n_classes,
                               level=how.level),
    }  # fmt: skip


def _limits(interval: Interval) -> tuple[float, float]:
    return float(interval.low), float(interval.high)
