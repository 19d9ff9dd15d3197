"""Checkpoints in a bucket: there or not there, whenever a run is killed, and finished by the next run."""

import random
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_folders import files_of, small, tensors_of, tiny, write_folder
from jax.experimental import multihost_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from object_store import Store  # noqa: E402

from lvr_jax import checkpoints  # noqa: E402
from lvr_jax.checkpoints import CheckpointError  # noqa: E402
from lvr_jax.checkpoints.orbax_io import flat  # noqa: E402


@pytest.fixture(scope="module")
def store():
    with Store() as store, store.here():
        yield store


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    return checkpoints.load(write_folder(folder, tiny(), tensors_of(tiny(), draw=small)))[1]


def save(params) -> None:
    checkpoints.save_params("gs://bucket/run/export", params, tiny(), overwrite=True)


def assert_whole(params) -> None:
    config, found, _ = checkpoints.load("gs://bucket/run/export")
    found, wanted = flat(found), flat(params)
    assert config == tiny() and found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)


@pytest.fixture(scope="module")
def moments(store, params):
    """What the bucket held after each write of an export: all that a killed run can leave."""
    found = []
    store.on_write = lambda name: found.append(dict(store.objects))
    save(params)
    store.on_write = lambda name: None
    assert_whole(params)
    return found


@pytest.mark.parametrize("count", [6, pytest.param(0, marks=pytest.mark.slow)], ids=["some", "all"])
def test_an_export_that_was_killed_at_any_moment_is_finished_by_the_next(store, params, moments, count):
    assert len(moments) > 15
    chosen = moments[1:]
    if count:
        chosen = [moments[1], moments[-1], *random.Random(0).sample(moments, count - 2)]
    for held in chosen:
        store.objects = dict(held)
        with pytest.raises(CheckpointError):
            checkpoints.load("gs://bucket/run/export")
        save(params)
        assert_whole(params)


def test_what_is_not_of_an_export_stays(store, params):
    store.objects = {}
    store.write("run/export/params/x", b"1")
    store.write("run/export/letters.txt", b"dear")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        save(params)
    assert store.names() == ["run/export/letters.txt", "run/export/params/x"]


def test_a_refusal_of_the_first_process_is_everybodys(store, params, monkeypatch):
    """As another process of two sees it: it does not begin to write and wait for the first one."""
    store.objects = {}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: np.array(True))
    with pytest.raises(CheckpointError, match="refused by the first process"):
        save(params)
    assert not store.names()


def test_a_hugging_face_folder_streams_into_a_bucket_byte_for_byte(store, tmp_path):
    """And again over what a killed conversion left, under other shards."""
    store.objects = {}
    source = write_folder(tmp_path / "hf", tiny(), tensors_of(tiny()), shards=2)
    checkpoints.to_flax(source, tmp_path / "flax")
    held = []
    store.on_write = lambda name: held.append(dict(store.objects))
    checkpoints.to_hf(tmp_path / "flax", "gs://bucket/hf")
    store.on_write = lambda name: None
    wanted = {f"hf/{name}": content for name, content in files_of(source).items()}
    assert {name: content for name, (content, _) in store.objects.items()} == wanted
    for left in (held[1], held[-1]):
        store.objects = dict(left)
        with pytest.raises(CheckpointError, match="exists"):
            checkpoints.to_hf(tmp_path / "flax", "gs://bucket/hf")
        checkpoints.to_hf(tmp_path / "flax", "gs://bucket/hf", overwrite=True)
        assert {name: content for name, (content, _) in store.objects.items()} == wanted
