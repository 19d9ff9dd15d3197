"""A process finds out that it is not alone, without being told by its environment."""

import jax
import pytest

from lvr_jax.training import distributed
from lvr_jax.training.distributed import hosts_of_slice, initialize


@pytest.mark.parametrize(
    "environment, hosts, joins",
    [({}, 1, False), ({}, 4, True), ({"JAX_DISTRIBUTED": "0"}, 4, False), ({"JAX_DISTRIBUTED": "1"}, 1, True),
     ({"TPU_WORKER_HOSTNAMES": "a,b"}, 1, True), ({"TPU_WORKER_HOSTNAMES": "a"}, 1, False),
     ({"SLURM_NTASKS": "2"}, 1, True)],
)  # fmt: skip
def test_a_host_of_a_slice_joins_the_others_unless_told_not_to(monkeypatch, environment, hosts, joins):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: called.append(a))
    assert initialize(environment, lambda _: hosts) is joins and len(called) == joins


class Answer:
    def __init__(self, text: str):
        self.text = text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self) -> bytes:
        return self.text.encode()


def test_the_metadata_server_is_asked_only_where_there_are_chips(monkeypatch):
    asked = []

    def opened(request, timeout):
        asked.append((request.full_url, request.headers["Metadata-flavor"], timeout))
        return Answer("unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3")

    monkeypatch.setattr(distributed.urllib.request, "urlopen", opened)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    assert hosts_of_slice({}) == 1 and not asked
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert hosts_of_slice({"JAX_PLATFORMS": "cpu"}) == 1 and not asked
    assert hosts_of_slice({}) == 3 and asked == [(distributed.METADATA, "Google", 5)]

    def refused(request, timeout):
        raise distributed.urllib.error.URLError("no such host")

    monkeypatch.setattr(distributed.urllib.request, "urlopen", refused)
    assert hosts_of_slice({}) == 1
