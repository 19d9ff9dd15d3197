"""Hosts that are about to do different runs all end, with the same line, before any of them waits for another."""

import shutil

import pytest
import runs
from forked import Process

from lvr_jax.training import agreement
from lvr_jax.training.agreement import agree, digest


class Said:
    """Stands for a run of two hosts; keeps what this one says."""

    count = 2

    def same(self, what: dict) -> None:
        self.what = what


def said(config, workdir) -> dict:
    hosts = Said()
    agree(hosts, config, workdir)
    return hosts.what


def test_what_hosts_compare_follows_config_code_checkpoint_and_steps(tmp_path, monkeypatch):
    shutil.copytree(runs.ROOT / "lvr_jax/assets/tiny", tmp_path / "tiny")
    config = runs.small(init__checkpoint=str(tmp_path / "tiny"))
    first = said(config, tmp_path / "run")
    assert said(config, tmp_path / "run") == first
    differ = lambda other: sorted(key.split()[0] for key in first if first[key] != other[key])  # noqa: E731
    assert differ(said(runs.small(init__checkpoint=str(tmp_path / "tiny"), steps=5), tmp_path / "run")) == ["config"]
    (tmp_path / "run/checkpoints/2").mkdir(parents=True)
    assert differ(said(config, tmp_path / "run")) == ["steps"]
    shutil.rmtree(tmp_path / "run")
    weights = tmp_path / "tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert differ(said(config, tmp_path / "run")) == ["init.checkpoint"]
    monkeypatch.setattr(agreement, "code_version", lambda: "another")
    assert differ(said(config, tmp_path / "run")) == ["code", "init.checkpoint"]


def test_a_missing_folder_is_a_value_and_a_bucket_is_its_name(tmp_path):
    assert digest(tmp_path / "nothing") == "missing" and digest("gs://bucket/checkpoint") == "shared"
    assert digest(tmp_path) != "missing"


PROGRAM = """
import sys, runs
from lvr_jax.multihost.hosts import Hosts, HostsError
from lvr_jax.training.agreement import agree
from lvr_jax.training.distributed import initialize
initialize()
hosts = Hosts.here("train")
try:
    agree(hosts, runs.small(steps=int(sys.argv[1])), "nowhere")
    hosts.finish()
except HostsError as error:
    sys.exit(hosts.leave(2, f"train: {error}"))
"""


@pytest.mark.parametrize("steps, status", [((4, 5), 2), ((4, 4), 0)])
def test_two_hosts_with_different_configs_end_with_one_line_each(steps, status):
    environments = runs.joined_environments(2)
    processes = [Process(["-c", PROGRAM, n], e) for n, e in zip(steps, environments)]
    for process in processes:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == status, error
        lines = [line for line in error.splitlines() if line.startswith("train:")]
        expected = "the hosts disagree on config.steps: process 0 has 4, process 1 has 5; expected the same on all"
        assert [expected in line for line in lines] == [True] * (status == 2)
