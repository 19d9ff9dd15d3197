"""Names of files: sound for any text, never two texts with one name, never out of the folder."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvr_jax.files.names import MAX_NAME, file_name, inside, packaged


@given(st.text())
def test_a_name_is_one_short_part_of_a_path(text):
    name = file_name(text)
    assert name and "/" not in name and "\0" not in name and not name.startswith(".") and len(name) <= MAX_NAME
    assert name.isascii()


@given(st.text(), st.text())
def test_two_texts_have_two_names(one, other):
    assert (file_name(one) == file_name(other)) == (one == other)


def test_texts_that_differ_in_separators_or_length_only_have_two_names():
    assert len({file_name(text) for text in ("a/b", "a b", "a?b", "a_b", "x" * 300, "x" * 301)}) == 6


def test_a_text_that_is_the_name_of_another_has_a_name_of_its_own():
    assert file_name(file_name("a/b")) != file_name("a/b")


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/passwd", "", None, 3, "a\0b", ".."])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is "):
        inside(tmp_path, name)


def test_a_path_that_stays_is_found(tmp_path):
    assert inside(tmp_path, "x/../y/a.png") == tmp_path / "x/../y/a.png"


def test_the_tiny_checkpoint_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.path.exists(os.path.join(packaged("lvr_jax/assets/tiny"), "README.md"))
    assert packaged("lvr_jax/other") == "lvr_jax/other" and packaged(tmp_path) == str(tmp_path)
    (tmp_path / "lvr_jax/assets/tiny").mkdir(parents=True)
    assert packaged("lvr_jax/assets/tiny") == "lvr_jax/assets/tiny"
