"""Content probes of a capture: words are found where they stand, and what cannot be probed says why."""

import numpy as np
import pytest

from lvr_jax.prism.measure.capture import Capture
from lvr_jax.prism.probes import content
from lvr_jax.prism.probes.content import ProbeError, Questions

I, D = 120, 16
WORDS = {"colour": ["red", "blue", "green"], "digit": ["1", "2", "3", "4"]}
HOW = {"pair": ("answer", "last_latent"), "question": "question", "h0": "h0", "folds": 5, "controls": 19, "level": 0.95,
       "draws": 200, "seed": 0}  # fmt: skip


def questions(seed=0) -> Questions:
    rng = np.random.default_rng(seed)
    kinds = np.array(["colour", "digit"] * (I // 2))
    texts = [rng.permutation(WORDS[k])[:3] for k in kinds]
    labels = rng.integers(0, 3, I)
    vector = {w: v for w, v in zip(sum(WORDS.values(), []), np.eye(7) - 1 / 7)}
    features = np.array([[vector[w] for w in own] for own in texts])
    return Questions(kinds, [str(own[j]) for own, j in zip(texts, labels)], labels, np.full(I, 3), features)


def captured(asked: Questions, seed=1) -> Capture:
    """The word stands at h0 and at the answer, the letter at the answer alone, nothing at the last latent."""
    rng = np.random.default_rng(seed)
    names = ("answer", "h0", "last_latent", "question")
    states = rng.standard_normal((I, 4, 1, D)).astype(np.float32)
    word = asked.features[np.arange(I), asked.labels] @ rng.standard_normal((7, D)) * 4
    letter = rng.standard_normal((3, D))[asked.labels] * 4
    states[:, 0, 0] += word + letter
    states[:, 1, 0] += word
    states[:6, 2] = np.nan                                            # six items without latents
    nothing = np.zeros((I, 1), np.int32)
    return Capture([f"item{i}" for i in range(I)], names, states, np.isfinite(states).all((2, 3)), asked.labels,
                   nothing, np.zeros((I, 1, 1, D)), nothing, nothing[:, 0], nothing[:, 0])  # fmt: skip


@pytest.fixture(scope="module")
def found():
    asked = questions()
    return content.read_content(captured(asked), asked, "auto", **HOW)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["closed", "options"])
def test_a_word_is_found_where_it_stands_and_nowhere_else(found, probe):
    grid = found[probe]
    floor = grid["h0"]["majority" if probe == "closed" else "chance"]
    assert grid["h0"]["accuracy"].low[-1] > floor and grid["h0"]["control_p"][-1] == 0.05
    assert grid["question"]["control_p"][-1] > 0.05
    assert grid["last_latent"]["items"] == I - 6
    gap = found["gap"][probe]
    assert gap["items"] == I - 6 and gap["gap"].low > 0
    assert gap["gap"].point == pytest.approx(gap["answer"] - gap["last_latent"])


def test_kinds_are_told_apart(found):
    """A kind's folds train on that kind alone, so that its majority is of its own answers."""
    by = found["closed"]["h0"]["by_kind"]
    assert {kind: by[kind]["classes"] for kind in by} == {"colour": 3, "digit": 4}
    assert sum(by[kind]["items"] for kind in by) == I and by["digit"]["majority"] < 0.5
    assert {kind: row["classes"] for kind, row in found["logistic"]["h0"].items()} == {"colour": 3, "digit": 4}
    assert min(row["accuracy"].point for row in found["logistic"]["h0"].values()) > 0.8


def test_open_answers_are_left_to_the_options():
    asked = questions()
    open_set = Questions(asked.kinds, [f"answer {i}" for i in range(I)], asked.labels, asked.options, asked.features)
    label = content.closed_classes(open_set.kinds, open_set.contents, 5)
    assert (label == -1).all()
    mixed = np.where(asked.kinds == "digit", open_set.contents, asked.contents)
    label = content.closed_classes(asked.kinds, mixed, 5)
    assert (label[asked.kinds == "digit"] == -1).all() and set(label[asked.kinds == "colour"]) == {0, 1, 2}


def test_a_closed_probe_with_one_class_is_refused_and_else_left_out():
    kinds = ["a"] * 10
    with pytest.raises(ProbeError, match="kind of question 'a' has 1 answers that occur 5 times or more") as error:
        content.check("closed", kinds, ["yes"] * 10, 5)
    assert "\n" not in str(error.value)
    content.check("auto", kinds, ["yes"] * 10, 5)
    assert (content.closed_classes(kinds, ["yes"] * 10, 5) == -1).all()


def test_options_without_texts_are_not_matched():
    asked = questions()
    bare = Questions(asked.kinds, asked.contents, asked.labels, asked.options, None)
    quick = {**HOW, "controls": 2, "draws": 50}
    assert content.read_content(captured(asked), bare, "options", **quick)["options"] is None
    assert content.read_content(captured(asked), bare, "none", **quick) is None
