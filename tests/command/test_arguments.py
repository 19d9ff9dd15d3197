"""An experiment is found by its name from any folder, a path stays a path, and wrong flags are one line."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from lvr_jax.command import arguments
from lvr_jax.files import shipped


@pytest.mark.parametrize("name, file, argument", [
    ("prism", "prism.py", ""), ("lvr:tiny", "lvr.py", ":tiny"), ("data/visual_cot:a,b", "data/visual_cot.py", ":a,b"),
])  # fmt: skip
def test_a_name_is_the_experiment_that_is_shipped(name, file, argument):
    assert shipped.config_file(name) == f"{shipped.CONFIGS / file}{argument}"


@pytest.mark.parametrize("value", ["configs/lvr.py:tiny", "mine.py", "../other/mine.py:3b"])
def test_a_path_stays_as_it_is(value):
    assert shipped.config_file(value) == value


def test_a_file_of_the_users_own_comes_before_an_experiment_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prism").write_text("")
    assert shipped.config_file("prism") == "prism"
    (tmp_path / "lvr").mkdir()
    assert shipped.config_file("lvr:tiny") == f"{shipped.CONFIGS / 'lvr.py'}:tiny", "a folder is no experiment"


@pytest.mark.parametrize("given, word", [
    (["--config", "lvrr:tiny"], "--config 'lvrr'.*expected a path or one of .*lvr, lvr_pooled"),
    (["--config=lvr:huge"], "'huge', expected one of 3b"),
    (["--config=nowhere/mine.py"], "nowhere/mine.py"),
    (["--config=lvr:tiny", "--config.nothing=1"], "nothing.*: the config has no such field to set"),
    (["--config=lvr:tiny", "--config.steps=many"], "many"),
    (["--nothing"], "Unknown command line flag 'nothing'"),
])  # fmt: skip
def test_wrong_flags_are_one_line_and_status_2(parse, capsys, given, word):
    with pytest.raises(SystemExit) as end:
        parse(["program", *given])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("program: ")
    with pytest.raises(AssertionError, match=word):
        raise AssertionError(line)


def test_a_default_is_read_where_no_config_is_given(parse):
    assert parse(["program", "--config.steps=7", "left"]) == ["program", "left"]
    assert parse.config.value.name == "lvr" and parse.config.value.steps == 7
    parse(["program", "--config", "n_lvr:tiny", "--", "--config"])
    assert parse.config.value.name == "n_lvr"


@pytest.fixture
def parse(monkeypatch):
    """A program's parser over flags of its own."""
    own = flags.FlagValues()
    monkeypatch.setattr(arguments.flags, "FLAGS", own)
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=own)
    made = arguments.parser("program", config, default="lvr:tiny")

    def run(given: list[str]) -> list[str]:
        monkeypatch.setattr(sys, "argv", given)         # where ml_collections looks for overrides
        return made(given)

    run.config = config
    return run
