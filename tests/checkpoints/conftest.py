"""Folders that most checkpoint tests start from."""

import os

import pytest
from checkpoint_folders import tensors_of, tiny, write_folder

from lvr_jax import checkpoints


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """fsync is a promise about power loss, which no test here can see."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def hf(tmp_path):
    """An untied bf16 checkpoint in two shards."""
    config = tiny()
    return write_folder(tmp_path / "hf", config, tensors_of(config), shards=2)


@pytest.fixture
def flax(tmp_path, hf):
    checkpoints.to_flax(hf, tmp_path / "flax")
    return tmp_path / "flax"
