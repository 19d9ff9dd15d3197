"""From Python a model answers as in an evaluation and in an audit, and a function is as good a condition as any."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "prism"))

import planted  # noqa: E402

import lvr_jax  # noqa: E402
from lvr_jax.evaluation.protocol import Budget, protocol  # noqa: E402
from lvr_jax.evaluation.runner import load_benchmark, run  # noqa: E402
from lvr_jax.latents import sweep as engine  # noqa: E402
from lvr_jax.latents.conditions import name_number  # noqa: E402
from lvr_jax.latents.sources import Clean, donors  # noqa: E402
from lvr_jax.prism import experiment  # noqa: E402

ROOT = Path(__file__).parents[2]
SHORT = {"budget": 3, "max_new_tokens": 12}
QUESTION, OPTIONS = "Is the picture bright or dark?", ["bright", "dark"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose answer is read from its latents alone, and a set of questions for it."""
    place = tmp_path_factory.mktemp("planted")
    planted.plant("carrier", place / "carrier")
    planted.benchmark(place / "set", 5)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return lvr_jax.open(folder / "carrier", **SHORT)


@pytest.fixture(scope="module")
def benchmark(folder):
    chosen = protocol("clean", max_new_tokens=12, steps=Budget(3, 3, 3))
    return load_benchmark("jsonl", folder / "set" / "items.jsonl", chosen)


@pytest.fixture(scope="module")
def items(benchmark):
    """The same as a person would ask them."""
    return [lvr_jax.Item(benchmark[i].images[0], row.question, row.options, row.answer, benchmark[i].boxes[0], row.id,
                         row.category) for i, row in enumerate(benchmark.rows)]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(items):
    """[I] whose latents each item gets as `donor`: all of them have latents."""
    everything = Clean(
        np.array([name_number(item.id) for item in items], np.int32), np.zeros((len(items), 1, 3, 32)),
        np.full((len(items), 1), 3), np.full(len(items), -1),
    )  # fmt: skip
    return donors(everything, 0)


@pytest.fixture(scope="module")
def swept(model, items, drawn):
    """One sweep of named conditions and of functions."""

    def nothing(latents):
        latents[...] = 0
        return latents

    def given(latents):
        return latents[drawn]

    negative = lvr_jax.conditions.condition(jax.jit(jnp.negative), "negative")
    return model.sweep(items, ["zero", "donor", "mean", "oracle", lvr_jax.noise(0.3), nothing, given, negative])


def test_importing_the_package_is_quick_and_starts_no_jax():
    """The interpreter's own start is not counted; the limit is 0.3 s, of which a quiet machine takes a tenth."""
    code = ("import sys, time; start = time.process_time(); import lvr_jax; took = time.process_time() - start; "
            "dir(lvr_jax), lvr_jax.TINY; print('jax' in sys.modules, took < 0.3)")  # fmt: skip
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True"]


def test_every_public_name_is_there():
    assert set(lvr_jax.__all__) <= set(dir(lvr_jax)) and all(getattr(lvr_jax, name) for name in lvr_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sweep'"):
        lvr_jax.sweep  # noqa: B018


@pytest.mark.slow
def test_ask_equals_evaluate_token_for_token(folder, model, benchmark, items, tmp_path):
    chosen = protocol("clean", max_new_tokens=12, steps=Budget(3, 3, 3))
    results = run(model.subject, benchmark, chosen, tmp_path / "results.jsonl", progress=False).items
    decode = model.subject.tokenizer.decode
    for item, result in zip(items, results):
        reply = model.ask(item)
        assert decode(reply.tokens) == result.reply and len(reply.latents) == result.latents_fed == 3
        assert (reply.letter, reply.content, reply.right) == (result.parsed, result.content, result.content_correct)
        np.testing.assert_allclose(
            [np.log(p) for p in reply.probabilities.values()],
            np.array(result.letter_logits) - np.logaddexp.reduce(result.letter_logits), atol=1e-3,
        )  # fmt: skip
    asked = model.ask(items[0].image, QUESTION, OPTIONS)
    assert decode(asked.tokens) == results[0].reply and asked.right is None


@pytest.mark.slow
def test_a_sweep_equals_the_audits_token_for_token(folder, benchmark, swept, tmp_path):
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict({
        "checkpoint": str(folder / "carrier"), "benchmark": "jsonl", "folder": str(folder / "set" / "items.jsonl"),
        "budget": 3, "switches": "max_new_tokens=12",
    })  # fmt: skip
    settings = experiment.settings_of(config)
    audit = experiment.prepare(config, settings, config.checkpoint, "carrier", tmp_path / "run", False, print)
    records = swept.records[:6]
    engine.run(audit._sweeper("corruption"), audit.items.prompts(), records, tmp_path / "sweep")
    results = engine.read(tmp_path / "sweep")
    assert results.conditions == ["clean", "zero", "donor", "mean", "oracle", "noise_0.3"]
    for name in results.conditions:
        arrays = results.of(name)
        for n, item in enumerate(results.items):
            reply = next(each for each in swept[name] if each.item == item)
            np.testing.assert_array_equal(reply.tokens, arrays["token"][n][arrays["live"][n]])
    donor = results.donor[results.conditions.index("donor")]
    donors = {item: results.items[d] for item, d in zip(results.items, donor)}
    assert {reply.item: reply.donor for reply in swept["donor"]} == donors


def test_a_function_that_returns_zeros_equals_zero(swept):
    for own, named in zip(swept["nothing"], swept["zero"]):
        assert own.text == named.text and own.margin == named.margin and not own.latents.any() and not own.missing
    assert any(own.content != clean.content for own, clean in zip(swept["nothing"], swept["clean"]))


def test_a_function_that_returns_the_donors_latents_equals_donor(items, swept, drawn):
    """It sees the items in the order in which they were given, whatever batches make of them."""
    assert [reply.donor for reply in swept["donor"]] == [items[n].id for n in drawn]
    for own, named, n in zip(swept["given"], swept["donor"], drawn):
        np.testing.assert_array_equal(own.tokens, named.tokens)
        np.testing.assert_array_equal(own.latents, named.latents)
        np.testing.assert_allclose(own.latents, swept["clean"][n].latents, atol=1e-6)
    assert any(own.content != clean.content for own, clean in zip(swept["given"], swept["clean"]))


def test_a_compiled_function_is_a_condition_too(swept):
    for own, clean in zip(swept["negative"], swept["clean"]):
        np.testing.assert_allclose(own.latents, -clean.latents, atol=1e-6)


def test_a_patched_state_at_the_answer_brings_the_clean_answer_back(model, items):
    """At the last layer of the position that picks the letter nothing else is left to do."""
    found = model.sweep(items, ["donor", lvr_jax.conditions.patched("donor", "answer", model.layers), "donor|answer:0"])
    clean, donor, last, first = (found[name] for name in ("clean", "donor", "donor|answer:1", "donor|answer:0"))
    assert [r.letter for r in last] == [r.letter for r in clean] != [r.letter for r in donor]
    assert [r.letter for r in first] == [r.letter for r in donor]


def test_states_at_layer_zero_are_the_latents_that_were_fed(model, items, swept):
    states = model.states(items, "latent_1", 0)
    np.testing.assert_allclose(states, [reply.latents[1] for reply in swept["clean"]], atol=1e-5)
    assert model.states(items, "answer", None).shape == (len(items), model.layers + 1, states.shape[1])


def test_latents_are_nearest_to_the_image_token_that_they_are_a_copy_of(model):
    """The oracle feeds the box's image tokens, here a single one of 56 pixels: its cosine with that one is 1."""
    pixels = np.full((112, 112, 3), 60, np.uint8)
    pixels[:56, 56:] = 250
    item = lvr_jax.Item(pixels, QUESTION, OPTIONS, box=(0.5, 0.0, 1.0, 0.5))
    reply = model.sweep(item, "oracle")["oracle"][0]
    assert reply.similarity[0].shape == (3, 2, 2)
    for nearest in reply.nearest:
        assert nearest[0].cosine > 0.9999
        assert nearest[0].box == (56, 0, 112, 56)
    assert [len(words) for words in reply.lens] == [5] * 3
    assert all(sum(p for _, p in words) <= 1 and words == sorted(words, key=lambda w: -w[1]) for words in reply.lens)


def test_attention_is_the_planted_one(model, items):
    """The letter is read from the latents alone; shares are those of one head and one layer."""
    attention = model.ask(items[0]).attention
    assert attention.latents > 0.9 and attention.image < 0.05
    assert attention.image + attention.latents + attention.text + attention.reply == pytest.approx(1, abs=1e-5)


def test_tables_are_plain_records(swept, items):
    table, summary = swept.table(), swept.summary()
    assert len(table) == 9 * 5 and len(summary) == 9
    assert {type(value) for row in (*table, *summary) for value in row.values()} <= {str, bool, int, float, type(None)}
    clean = summary[0]
    assert clean["accuracy"] == np.mean([reply.right for reply in swept["clean"]]) and clean["changed"] == 0
    assert summary[5]["strength"] == 0.3 and [row["condition"] for row in summary][-1] == "negative"


def wrong_shape(latents):
    return latents[:, :1]


def ragged(latents):
    return [[1.0], [1.0, 2.0]]


def not_a_number(latents):
    return latents * np.nan


def too_large(latents):
    return np.full(latents.shape, 1e300)


PICTURE = np.full((56, 56, 3), 90, np.uint8)
BAD = {
    "no such file": (lambda m: m.ask("nowhere.png", QUESTION), "nowhere.png"),
    "no picture": (lambda m: m.ask(b"this is a text", QUESTION), "bytes: cannot be read"),
    "another array": (lambda m: m.ask(np.zeros((3, 3)), QUESTION), "expected uint8"),
    "another type": (lambda m: m.ask(7, QUESTION), "image is of type int"),
    "no text": (lambda m: m.ask(PICTURE, " "), "question is ' '"),
    "one option": (lambda m: m.ask(PICTURE, QUESTION, ["red"]), "two to 26"),
    "options in one text": (lambda m: m.ask(PICTURE, QUESTION, "red,blue"), "list of texts"),
    "options in no order": (lambda m: m.ask(PICTURE, QUESTION, {"red", "blue"}), "list of texts"),
    "options in an array": (lambda m: m.ask(PICTURE, QUESTION, np.array(OPTIONS)), "list of texts"),
    "a number for an answer": (lambda m: m.ask(PICTURE, QUESTION, OPTIONS, answer=1), "answer is 1, expected a text"),
    "a number for an id": (lambda m: m.ask(PICTURE, QUESTION, OPTIONS, id=7), "id is 7, expected a text"),
    "a web address": (lambda m: m.ask("https://example.com/a.png", QUESTION), "expected a local file or gs://"),
    "an option twice": (lambda m: m.ask(PICTURE, QUESTION, ["red", "red"]), "options has 'red' twice"),
    "another answer": (lambda m: m.ask(PICTURE, QUESTION, OPTIONS, answer="red"), "answer is 'red'"),
    "box in pixels": (lambda m: m.ask(PICTURE, QUESTION, OPTIONS, box=(0, 0, 20, 20)), "box"),
    "no items": (lambda m: m.sweep([], "zero"), "no items"),
    "no item": (lambda m: m.sweep(["photo.jpg"], "zero"), "expected an Item"),
    "the same twice": (lambda m: m.sweep([(PICTURE, QUESTION, None, None, None, "a")] * 2, "zero"), "'a' occurs twice"),
    "no such condition": (lambda m: m.sweep((PICTURE, QUESTION), "zeros"), "condition 'zeros': expected one of clean"),
    "no number": (lambda m: m.sweep((PICTURE, QUESTION), "noise=x"), "noise=NUMBER"),
    "options once": (lambda m: m.ask(PICTURE, QUESTION, iter(OPTIONS)), "list of texts"),
    "half a character": (lambda m: m.ask(PICTURE, "\ud800?", OPTIONS), "half of a character"),
    "no such field": (lambda m: m.ask(PICTURE, QUESTION, colour="red"), "'colour'"),
    "options beside an item": (lambda m: m.ask(lvr_jax.Item(PICTURE, QUESTION), options=OPTIONS), "expected it alone"),
    "no item at all": (lambda m: m.sweep(None, "zero"), "items is None, expected an item"),
    "pictures shown in the message": (lambda m: m.sweep([(PICTURE,)], "zero"), "missing 1 required"),
    "no conditions at a time": (lambda m: m.sweep((PICTURE, QUESTION), "zero", chunk=0), "chunk is 0"),
    "noise beyond fp32": (lambda m: m.sweep((PICTURE, QUESTION), "noise=1e39"), "sigma is 1e.39, expected 0 or more"),
    "no whole latent": (lambda m: lvr_jax.conditions.only("zero", "0"), "steps is"),
    "no array": (lambda m: m.sweep((PICTURE, QUESTION), ragged), "returned no array"),
    "endless budget": (lambda m: m.sweep((PICTURE, QUESTION), "budget=1e400"), "budget is inf, expected a whole"),
    "half a latent": (lambda m: lvr_jax.conditions.budget(2.5), "budget is 2.5, expected a whole number"),
    "strength as text": (lambda m: lvr_jax.conditions.noise("1"), "is '1', expected a number"),
    "no layer": (lambda m: m.sweep((PICTURE, QUESTION), "zero|latent_0:²"), "expected CONDITION.POSITION:LAYER"),
    "a latent that is not there": (lambda m: m.sweep((PICTURE, QUESTION), "zero@7"), "touches latent 7"),
    "a donor for one": (lambda m: m.sweep((PICTURE, QUESTION), "donor"), "latents of other items"),
    "no box": (lambda m: m.sweep((PICTURE, QUESTION), "oracle"), "region 'box'"),
    "no scene": (lambda m: m.sweep((PICTURE, QUESTION), "counterfactual"), "'counterfactual'"),
    "no name": (lambda m: m.sweep((PICTURE, QUESTION), lambda z: z), "has no name"),
    "a taken name": (lambda m: lvr_jax.conditions.condition(wrong_shape, "mean"), "taken"),
    "another shape": (lambda m: m.sweep((PICTURE, QUESTION), wrong_shape), r"\(1, 3, 32\)"),
    "too large": (lambda m: m.sweep((PICTURE, QUESTION), too_large), "not finite"),
    "NaN": (lambda m: m.sweep((PICTURE, QUESTION), not_a_number), "not finite"),
    "no such position": (lambda m: m.states((PICTURE, QUESTION), "latent_9"), "latent_9"),
    "half a layer": (lambda m: m.states((PICTURE, QUESTION), "latent_0", 0.5), "layer 0.5 does not exist"),
    "a layer's name": (lambda m: m.states((PICTURE, QUESTION), "latent_0", "1"), "layer '1' does not exist"),
    "no such layer": (lambda m: m.states((PICTURE, QUESTION), "latent_0", 12), "layer 12"),
}  # fmt: skip


REFUSED = {
    "no such folder": ({"checkpoint": "nowhere"}, "nowhere: no such folder"),
    "no such system": ({"system": "lvx"}, "'lvx'"), "no such dtype": ({"dtype": "int8"}, "'int8'"),
    "no path": ({"checkpoint": None}, "checkpoint is None, expected the path"),
    "no text for a path": ({"checkpoint": "a\0b"}, "expected the path"),
    "no seed": ({"seed": "x"}, "seed is 'x'"), "negative seed": ({"seed": -1}, "seed is -1"),
    "no yes or no": ({"force_latents": "yes"}, "force_latents is 'yes'"),
    "no such protocol": ({"protocol": "mine"}, "no protocol 'mine'"), "no such prompts": ({"prompts": "x"}, "'x'"),
    "no latents": ({"budget": 0}, "budget is 0, expected a whole number, 1 to 4096 latents a block"),
    "a text of latents": ({"budget": "4"}, "budget is '4', expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_opened_is_one_line(folder, case):
    given, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as error:
        lvr_jax.open(**{"checkpoint": folder / "carrier", **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(model, case):
    call, said = BAD[case]
    with pytest.raises(ValueError, match=said) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_latents_refuses_conditions_on_them(folder):
    plain = lvr_jax.open(folder / "carrier", system="none", **SHORT)
    reply = plain.ask(PICTURE, QUESTION, OPTIONS)
    assert len(reply.latents) == 0 and reply.nearest == reply.lens == [] and reply.draw("nothing to see").axes
    with pytest.raises(ValueError, match="no latents"):
        plain.sweep((PICTURE, QUESTION), "zero")


def test_options_in_one_text_are_cut_at_commas_outside_of_quotes():
    cut = lvr_jax.api.questions.options_of
    assert cut('red, "dark, or so" ,blue') == ["red", "dark, or so", "blue"]
    assert cut(" 27\" \n, 日本") == ['27"', "日本"] and cut("") == []


def test_what_is_shown_in_a_notebook_is_one_line(model, swept):
    reply = swept["zero"][0]
    item = lvr_jax.Item(b"a file" * 1000, QUESTION)
    for each in (model, swept, reply, item, reply.attention, lvr_jax.noise(0.3)):
        assert len(repr(each)) < 300 and "\n" not in repr(each)
    assert repr(reply.text) in repr(reply) and "zero" in repr(swept)


def test_a_whole_item_is_asked_in_every_form_that_a_sweep_takes(model, items):
    forms = (items[0], (items[0].image, QUESTION, OPTIONS), {"image": items[0].image, "question": QUESTION,
             "options": OPTIONS})  # fmt: skip
    assert len({model.ask(each).text for each in forms}) == 1
    np.testing.assert_array_equal(model.tokenizer.encode(model.ask(items[0]).text)[-1:], model.subject.stop[:1])
    assert {"latent_0", "latent_2", "answer", "image"} < set(model.positions)


def test_pictures_may_come_as_file_bytes_array_or_pillow_image(model, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    path = tmp_path / "photo.png"
    ways = (path, str(path), path.read_bytes(), PICTURE, Image.open(path))
    found = [model.ask(each, QUESTION, OPTIONS).text for each in ways]
    assert len(set(found)) == 1


@pytest.mark.parametrize("given, said", [
    (("3",), "count is '3', expected a whole number"), ((2.5,), "count is 2.5"), ((True,), "count is True"),
    ((0,), "count is 0, expected a whole number, at least 1"), ((2, "x"), "scenes: "),
])  # fmt: skip
def test_scenes_that_cannot_be_are_one_line(given, said):
    with pytest.raises(ValueError, match=said) as error:
        lvr_jax.scenes(*given)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="scenes: 'foo' is no setting of scenes, expected some of .*mask_box"):
        lvr_jax.scenes(2, foo=1)
