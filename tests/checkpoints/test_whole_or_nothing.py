"""The output is there at once or not at all, whatever happens on the way."""

import subprocess

import numpy as np
import pytest
from checkpoint_folders import arrays_of, assert_nothing_left, files_of, tiny
from forked import Process

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError, conversion, folder


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path, hf, flax):
    before = files_of(flax)
    with pytest.raises(CheckpointError, match="exists"):
        checkpoints.to_flax(hf, flax)
    assert files_of(flax) == before
    checkpoints.to_flax(hf, flax, dtype="float32", overwrite=True)
    assert checkpoints.load(flax)[1]["text"]["norm"].dtype == np.float32
    assert_nothing_left(tmp_path, "hf", "flax")


def test_only_a_checkpoint_can_be_overwritten(tmp_path, hf):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="letters exists and is no checkpoint"):
        checkpoints.to_flax(hf, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


@pytest.mark.parametrize("pieces", [0, 7, 60])
def test_an_error_on_the_way_leaves_nothing_and_keeps_the_old(tmp_path, hf, flax, pieces):
    before, left = files_of(flax), [pieces]

    def fail(count):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("a reason")

    for convert, source, target in (
        (checkpoints.to_flax, hf, flax),
        (checkpoints.to_flax, hf, tmp_path / "new" / "er"),
        (checkpoints.to_hf, flax, tmp_path / "out"),
    ):
        left[0] = pieces
        with pytest.raises(RuntimeError, match="a reason"):
            convert(source, target, overwrite=True, progress=fail)
    assert_nothing_left(tmp_path, "hf", "flax")
    assert files_of(flax) == before


def test_a_difference_found_by_verify_leaves_nothing(tmp_path, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "same_bits", lambda a, b: False)
    with pytest.raises(CheckpointError, match="differs from what was written as"):
        checkpoints.to_flax(hf, tmp_path / "new", verify=True)
    with pytest.raises(CheckpointError, match="differs from what was written as"):
        checkpoints.to_hf(flax, tmp_path / "new", verify=True)
    assert_nothing_left(tmp_path, "hf", "flax")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, hf):
    code = (
        "import sys, os, signal; from lvr_jax import checkpoints\n"
        "checkpoints.to_flax(*sys.argv[1:], progress=lambda n, left=[9]: left.append(0) or "
        "len(left) > 9 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert Process(["-c", code, hf, tmp_path / "flax"]).wait() == -9
    assert_nothing_left(tmp_path, "hf", "flax.incomplete")
    with pytest.raises(CheckpointError, match="half-written"):
        checkpoints.load(tmp_path / "flax.incomplete")
    checkpoints.to_flax(hf, tmp_path / "flax", verify=True)
    assert_nothing_left(tmp_path, "hf", "flax")


@pytest.mark.parametrize("name", ["flax.incomplete", "flax.replaced"])
def test_a_folder_of_the_users_under_a_temporary_name_is_left_alone(tmp_path, hf, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=f"{name} exists and was not made by this program"):
        checkpoints.to_flax(hf, tmp_path / "flax")
    assert (tmp_path / name / "thesis.tex").read_text() == "mine"
    assert_nothing_left(tmp_path, "hf", name)


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_overwritten_checkpoint_is_replaced_whole(tmp_path, hf, flax, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    before = arrays_of(flax), files_of(flax / "hf")
    (flax / "hf" / "README.md").write_text("an older one")
    checkpoints.to_flax(hf, flax, overwrite=True)
    assert (arrays_of(flax), files_of(flax / "hf")) == before
    assert_nothing_left(tmp_path, "hf", "flax")


def test_the_name_has_a_whole_checkpoint_at_every_moment_of_an_overwrite(tmp_path, hf, flax):
    code = (
        "import os, shutil, signal, sys; from lvr_jax import checkpoints\n"
        "shutil.rmtree = os.unlink = os.rename = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.to_flax(*sys.argv[1:], overwrite=True)"
    )
    assert Process(["-c", code, hf, flax]).wait() == -9
    checkpoints.load(flax)
    checkpoints.to_flax(hf, flax, overwrite=True)
    assert_nothing_left(tmp_path, "hf", "flax")


@pytest.mark.parametrize("where", ["hf", "hf/inside", "."])
def test_a_checkpoint_is_not_written_over_or_into_its_source(tmp_path, hf, where):
    before = files_of(hf)
    with pytest.raises(CheckpointError, match="is the source itself, or one lies in the other"):
        checkpoints.to_flax(hf, tmp_path / where, overwrite=True)
    assert files_of(hf) == before


@pytest.mark.parametrize("name", ["", "a\0b", "half\udcff", "gs://", "s3://bucket/x"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path, hf, name):
    target = str(tmp_path / name) if name and "://" not in name else name
    for source, out in ((hf, target), (target, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="checkpoint is .*, expected"):
            checkpoints.to_flax(source, out)


def test_two_runs_cannot_write_the_same_checkpoint(tmp_path, hf):
    with folder.building(tmp_path / "flax") as place:
        (place / "x").write_text("mine")
        with pytest.raises(CheckpointError, match="another process is writing"):
            checkpoints.to_flax(hf, tmp_path / "flax")
        assert (place / "x").read_text() == "mine"


def test_too_little_space_is_refused_before_writing(tmp_path, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "free_space", lambda _: 1000)
    for convert, source in ((checkpoints.to_flax, hf), (checkpoints.to_hf, flax)):
        with pytest.raises(checkpoints.DiskFullError, match=r"0\.00 MB free, the output needs 0\.0\d MB"):
            convert(source, tmp_path / "new")
    assert_nothing_left(tmp_path, "hf", "flax")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 48 kB: less than the checkpoint needs."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", tmp_path / "disk"]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tiny_disk, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "free_space", lambda _: 10**12)
    for convert, source in ((checkpoints.to_flax, hf), (checkpoints.to_hf, flax)):
        with pytest.raises(checkpoints.DiskFullError, match="disk: the disk is full .* nothing was kept") as error:
            convert(source, tiny_disk / "new")
        assert "\n" not in str(error.value)
    assert_nothing_left(tiny_disk)


def test_object_storage_is_written_in_place_and_complete_with_its_marker(tmp_path, hf, monkeypatch):
    monkeypatch.setattr(folder, "is_remote", lambda path: True)

    def check(count):
        with pytest.raises(CheckpointError, match="half-written"):
            folder.is_ours(folder.resolve(tmp_path / "flax"))

    checkpoints.to_flax(hf, tmp_path / "flax", progress=check)
    assert checkpoints.load(tmp_path / "flax")[0] == tiny()
    with pytest.raises(RuntimeError):
        with folder.building(tmp_path / "other"):
            raise RuntimeError
    assert_nothing_left(tmp_path, "hf", "flax")


def test_a_hugging_face_folder_in_a_bucket_is_not_read(tmp_path, flax):
    with pytest.raises(CheckpointError, match="gs://b/x: a Hugging Face folder must be on a local disk"):
        checkpoints.to_flax("gs://b/x", tmp_path / "new")
    with pytest.raises(CheckpointError, match="gs://b/x: only a Hugging Face folder on a local disk can be read back"):
        checkpoints.to_hf(flax, "gs://b/x", verify=True)
