"""A folder has one run at a time, and a lock leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvr_jax.files.lock import InUse, locked


def test_a_second_run_is_refused_in_one_line(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InUse, match=f"^{tmp_path}: another run is writing there; wait"):
            with locked(tmp_path):
                pass
    with locked(tmp_path):
        pass


def test_other_hosts_of_a_run_are_let_in(tmp_path):
    with locked(tmp_path), locked(tmp_path, wanted=False):
        (tmp_path / "part").touch()
    assert os.listdir(tmp_path) == ["part"]


def test_a_folder_that_stays_empty_is_not_claimed(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["result"]


def test_a_killed_run_bars_nobody(tmp_path):
    code = ("import sys, time; from lvr_jax.files.lock import locked\n"
            "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "x"], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "held\n"
        with pytest.raises(InUse), locked(tmp_path / "x"):
            pass
        run.kill()
    with locked(tmp_path / "x"):
        pass


def test_a_place_that_cannot_be_had_is_left_to_who_writes_there(tmp_path):
    (tmp_path / "file").touch()
    with locked(tmp_path / "file"), locked(tmp_path / "file" / "below"), locked("gs://bucket/run"):
        pass
    assert (tmp_path / "file").is_file()


def test_a_place_where_no_folder_can_ever_be_made_ends_the_search(tmp_path, monkeypatch):
    """/proc says of every new folder that its parent is not there, as a run does that ends in the meantime."""
    def mkdir(self, **options):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
