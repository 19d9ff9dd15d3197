"""Processes meet, compare and end together: whoever is missing or differs is named in every process, none hangs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import finish, last_line, start  # noqa: E402

PROGRAM = """
import os, sys, time
from lvr_jax.multihost.hosts import Hosts, HostsError, MissingHost
from lvr_jax.training.distributed import initialize
initialize()
hosts, scene, folder = Hosts.here("scene"), *sys.argv[1:3]
if scene == "meets":
    hosts.share(folder)
    hosts.same({"config": {"seed": 0}, "long": "x" * 9000})
    print(hosts.gather("numbers", {"of": hosts.index}), hosts.broadcast("first", lambda: hosts.index + 7))
    hosts.finish()
    sys.exit()
try:
    if scene == "differs":
        hosts.same({"config": {"seed": min(hosts.index, 1), "rows": 8}})
    if scene == "private":
        hosts.share(os.path.join(folder, str(hosts.index)))
    if scene == "late" and hosts.index == 1:
        time.sleep(60)
    if scene == "works" and hosts.index == 1:           # slower than the patience, but it goes on
        for n in range(4):
            time.sleep(1)
            hosts.progress(n)
    if scene == "fails" and hosts.index == 2:
        raise HostsError("its disk is full")
    if scene == "fails" and hosts.index == 1:           # where no barrier looks: inside a device collective, say
        time.sleep(60)
    hosts.wait("sweep")
    hosts.finish()
except HostsError as error:
    hosts.leave(2, f"scene: {error}")
except MissingHost as error:
    hosts.leave(1, f"scene: {error}")
"""


def scene(name: str, folder: Path, count: int, **environment) -> list[tuple[int, str, str]]:
    return finish(start(["-c", PROGRAM, name, folder], count, **environment), timeout=100)


@pytest.mark.slow
def test_values_of_all_come_to_all_in_order(tmp_path):
    found = scene("meets", tmp_path, 3)
    assert [status for status, _, _ in found] == [0, 0, 0], found
    assert {out for _, out, _ in found} == {"[{'of': 0}, {'of': 1}, {'of': 2}] 7\n"}
    assert not list(tmp_path.iterdir()), "what was written to try the folder is gone"


@pytest.mark.slow
def test_a_process_that_goes_on_working_is_waited_for(tmp_path):
    assert [status for status, _, _ in scene("works", tmp_path, 2, LVR_JAX_PATIENCE="2")] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name, count, status, said", [
    ("differs", 3, 2, "the hosts disagree on config.seed: process 0 has 0, process 1 has 1; expected the same on all"),
    ("private", 2, 2, "process 1 of 2 does not see what process 0 writes there, expected gs:// or a folder that all"),
    ("late", 3, 1, "sweep: process 1 of 3 did not come within 2 s; what is finished is kept"),
    ("fails", 3, 2, "its disk is full"),
])
def test_what_is_wrong_ends_every_process_with_one_line(tmp_path, name, count, status, said):
    found = scene(name, tmp_path, count, LVR_JAX_PATIENCE="2")
    assert [ended for ended, _, _ in found] == [status] * count, found
    for _, _, error in found:
        assert said in last_line(error) and error.count("scene: ") == 1 and "Traceback" not in error, error
