"""What the playground computes and draws, without a browser and without Gradio."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "prism"))

import planted  # noqa: E402

import lvr_jax  # noqa: E402
import playground  # noqa: E402
from demo import panels, session  # noqa: E402
from lvr_jax.latents import sweep as engine  # noqa: E402

BRIGHT, DARK = np.full((56, 56, 3), 200, np.uint8), np.full((56, 56, 3), 40, np.uint8)
QUESTION, OPTIONS = "Is the picture bright or dark?", ["bright", "dark"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A checkpoint whose answer is read from its latents alone."""
    return session.Session(planted.plant("carrier", tmp_path_factory.mktemp("planted") / "carrier"),
                           budget=3, max_new_tokens=12)  # fmt: skip


@pytest.fixture(scope="module")
def answer(opened):
    return opened.answer(item(), sigma=0.5, chosen=[0, 1, 2])


def item(picture=BRIGHT, **fields):
    return lvr_jax.Item(picture, QUESTION, OPTIONS, **fields)


def rows(answer):
    return {row.condition: row for row in answer.rows}


@pytest.mark.slow
def test_a_row_is_what_the_sweep_says(opened, answer):
    names = ["zero", "first_repeat", "answer_blind_to_latents", "markers_only"]
    swept, found = opened.model.sweep(item(), names), rows(answer)
    for name in ("clean", *names):
        assert found[name].text == swept[name][0].text and found[name].letter == swept[name][0].letter
    assert found["clean"].content == "bright" and found["answer_blind_to_latents"].shift < 0
    assert found["clean"].probabilities["A"] > found["zero"].probabilities["A"]
    assert sum(found["clean"].probabilities.values()) == pytest.approx(1)


def test_knocking_out_all_latents_is_zeroing_them(answer):
    found = rows(answer)
    assert found[session.CUT].text == found["zero"].text
    assert found[session.CUT].shift == pytest.approx(found["zero"].shift, abs=1e-5)
    assert found[session.CUT_MEAN].shift == pytest.approx(found[session.MEAN].shift, abs=1e-5)


def test_one_latent_of_three_weighs_less_than_all(opened, answer):
    one = rows(opened.answer(item(), chosen=[1]))[session.CUT]
    assert rows(answer)[session.CUT].shift < 2 * one.shift < 0
    assert session.CUT not in rows(opened.answer(item()))


def test_without_noise_the_answer_is_the_clean_one_and_more_noise_moves_it_more(opened):
    shifts = [abs(rows(opened.answer(item(), sigma=sigma))[session.NOISE].shift) for sigma in (0.0, 0.3, 3.0)]
    assert shifts[0] < 1e-5 and shifts[0] < shifts[1] < shifts[2]


def test_another_scenes_latents_are_those_that_its_own_reply_was_fed(opened):
    scene = lvr_jax.scenes(session.DONORS, seed=1)[5]
    fed = opened.model.sweep(item(), opened.conditions(False, 0.5, [0], 5), attention=True)[session.OTHER][0]
    np.testing.assert_allclose(fed.latents, opened.model.ask(scene).latents, atol=1e-5)     # of another batch
    assert not np.allclose(fed.latents, opened.pool[4], atol=1e-3)


def test_moving_any_control_compiles_nothing(opened, answer):
    compiled = engine.sweep._cache_size(), engine.prefill._cache_size()
    opened.answer(item(DARK), sigma=2.5, chosen=[2], donor=3)
    opened.answer(item(DARK), sigma=0.0)
    assert (engine.sweep._cache_size(), engine.prefill._cache_size()) == compiled


@pytest.mark.parametrize("values", [{"sigma": -1.0}, {"sigma": float("nan")}, {"donor": 8}, {"chosen": [3]}])
def test_numbers_that_the_page_does_not_offer_are_refused(opened, values):
    with pytest.raises(session.SessionError, match="expected"):
        opened.answer(item(), **values)


def test_ordinary_text_has_a_reply_and_no_conditions(tmp_path):
    found = session.Session(planted.plant("ignored", tmp_path / "text"), system="none", max_new_tokens=12)
    (row,) = found.answer(item(DARK)).rows
    assert row.condition == "clean" and found.latents == 0


def test_a_drawn_scene_is_asked_as_it_is_and_keeps_its_box_where_its_answer_is_still_offered():
    drawn = session.scene(3)
    picture, question, options = drawn.images[0], session.plain_question(drawn), ", ".join(drawn.options)
    assert "(A)" not in question and session.own_item(picture, question, options, drawn) is drawn
    asked = session.own_item(picture, "Which?", f" {drawn.answer},other ", drawn)
    assert asked.options == [drawn.answer, "other"] and asked.box == drawn.boxes[0] and asked.answer == drawn.answer
    assert session.own_item(picture, "Which?", "", drawn).box is None
    assert session.own_item(picture, question, options, None).answer is None


def test_scenes_to_draw_are_none_of_the_donors():
    donors = [sample.images[0] for sample in lvr_jax.scenes(session.DONORS, seed=1)]
    assert not any(np.array_equal(session.scene(n).images[0], donor) for n in range(20) for donor in donors)


def test_a_heat_map_is_brightest_where_the_cosine_is_largest():
    cosines = np.array([[0.1, 0.2, -0.3], [0.0, 0.9, 0.1]])
    drawn = panels.heat(np.full((20, 30, 3), 128, np.uint8), cosines).astype(int).sum(-1)
    cells = drawn.reshape(2, 10, 3, 10).transpose(0, 2, 1, 3).reshape(2, 3, -1)
    assert (cells == cells[..., :1]).all(), "a cell of one colour for each token"
    assert cells[..., 0].argmax() == cosines.argmax() and cells[..., 0].argmin() == cosines.argmin()


def test_panels_show_what_there_is_and_escape_what_others_wrote(opened):
    found = opened.answer(lvr_jax.Item(BRIGHT, QUESTION, ["<script>alert(1)</script>", "dark"]), chosen=[1])
    said, maps = panels.said("<b>", found), panels.heat_maps(BRIGHT, found.reply, [1])
    table = panels.table(found.rows, {"zero", session.CUT})
    assert "<script>" not in said + maps + table and "&lt;script&gt;" in table and "<h3>&lt;b&gt;</h3>" in said
    assert said.count('class="lvr-z"') == 3 == maps.count("<figure") and maps.count("lvr-cut") == 1
    assert re.findall(r'<td title="[^"]*">([^<]*)</td>', table) == [
        "as the model makes them", "knocked out: zero", "zeros"]  # fmt: skip
    shares = re.findall(r"flex-grow:([\d.]+)", panels.attention(found.reply))
    assert len(shares) == 4 and sum(map(float, shares)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("arguments, message", [
    (["--checkpoint", "a", "b", "c"], "--checkpoint names 3 folders, expected one or two"),
    (["--checkpoint", "a", "--port", "70000"], "--port is 70000, expected 0 to 65535"),
    (["--checkpoint", "a", "--budget", "0"], "--budget is 0, expected at least 1"),
])
def test_wrong_flags_are_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        playground.main(arguments)
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_a_port_in_use_is_one_line_and_status_1(capsys, tmp_path):
    import socket

    with socket.socket() as other:
        other.bind((playground.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert playground.main(["--checkpoint", str(tmp_path), "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"playground: --port {port}: address already in use; choose another one\n"


def test_without_gradio_a_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "demo.page", raising=False)
    assert playground.main(["--port", "0"]) == 2
    assert capsys.readouterr().err == "playground: Gradio is missing: pip install -e '.[demo]'\n"


def test_the_folder_of_a_killed_playground_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(playground.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{playground._FOLDER}killed"
    others = tmp_path / f"{playground._FOLDER}notes"
    for folder, name in ((left, playground._OURS), (left, "upload.png"), (others, "notes.txt")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("")
    with playground.own_folder() as mine:
        assert not left.exists() and (others / "notes.txt").exists(), "what another program made is not ours to remove"
        with playground.own_folder() as other:
            assert mine != other and Path(mine).is_dir(), "one that is running keeps its own"
    assert list(tmp_path.iterdir()) == [others]
