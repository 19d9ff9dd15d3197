"""Every host says what is wrong with it, or with one of the others, before a run is started."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
import runs  # noqa: E402
from object_store import Store  # noqa: E402


def doctor(*workdir: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "tools/doctor.py", *workdir], cwd=ROOT, env=runs.environment(2, **environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def two(*workdir: str, of_second: dict[str, str] | None = None) -> list[tuple[int, str, str]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    hosts = [
        doctor(*workdir, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i),
               **((of_second or {}) if i else {}))
        for i in range(2)
    ]  # fmt: skip
    return [(*host.communicate(timeout=300), host.returncode)[::-1] for host in hosts]


def test_one_host_and_a_bucket_without_access():
    with Store() as store:
        host = doctor("gs://bucket/run", **store.environment)
        out, err = host.communicate(timeout=120)
        assert host.returncode == 0 and out.splitlines()[-1] == "all is well", err
        assert "chips a host   2 of cpu" in out and not store.objects
        host = doctor("gs://somebody_elses/run", **store.environment)
        out, err = host.communicate(timeout=120)
    assert host.returncode == 2 and "all is well" not in out
    assert err.splitlines()[-1].startswith("doctor: gs://somebody_elses/run: cannot be written to (Forbidden")


@pytest.mark.slow
def test_hosts_that_agree_and_hosts_that_do_not(tmp_path):
    (first, err, out), (second, _, _) = two(str(tmp_path / "run"))
    assert (first, second) == (0, 0) and out.splitlines()[-1] == "all is well", err
    assert "hosts          2, this is 0; 4 chips in all" in out and not list((tmp_path / "run").iterdir())

    other = tmp_path / "packages" / "gcsfs-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: gcsfs\nVersion: 0.0.1\n")
    found = two(of_second={"PYTHONPATH": f"{other.parent}:{ROOT}"})
    assert [status for status, _, _ in found] == [2, 2]
    for _, err, _ in found:
        assert "the hosts disagree on packages" in err.splitlines()[-1]
