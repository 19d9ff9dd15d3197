"""Does a run survive on several hosts as tools/launch_tpu.sh starts it there: told by its environment alone?"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "training"))
import runs  # noqa: E402

LAUNCH = str(ROOT / "tools" / "launch_tpu.sh")
SMALL = (
    "--config", "configs/n_lvr.py:tiny", "--config.init.checkpoint=", "--config.shards=2", "--config.rows=4",
    f"--config.data.tokenizer={ROOT}/tests/golden/tokenizer.json", "--config.data.tokens=256",
    "--config.data.windows=2", "--config.data.max_per_row=2", "--config.data.prefetch=0",
    "--config.data.lookahead=4", "--config.held_out.every=0", "--config.checkpoint.every=0",
    "--config.checkpoint.export=False", "--config.log.every=1", "--config.log.progress=False",
    "--config.log.tensorboard=False", f"--config.compilation_cache={runs.CACHE}", "--config.mesh.data=2",
)  # fmt: skip


def worker(*command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [LAUNCH, "worker", *command], cwd=ROOT, env=runs.environment(2, PAUSE="0.1", **environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def two_hosts(workdir: Path, steps: int) -> list[subprocess.Popen]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "tools/train.py", *SMALL, f"--config.steps={steps}", "--workdir", str(workdir)]
    return [
        worker(*command, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    found = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    return [out for out, _ in found]


@pytest.mark.slow
def test_two_hosts_stopped_by_sigterm_and_started_again_end_as_two_that_were_not(tmp_path):
    steps, calm, stopped = 40, tmp_path / "calm", tmp_path / "stopped"
    assert all("finished at step 40" in out for out in outputs(two_hosts(calm, steps)))

    hosts, waited = two_hosts(stopped, steps), time.monotonic()
    while not (stopped / "metrics.jsonl").exists() or len(runs.metrics(stopped)) < 3:
        assert all(host.poll() is None for host in hosts) and time.monotonic() - waited < 600
        time.sleep(0.02)
    for host in hosts:
        host.send_signal(signal.SIGTERM)
    said = outputs(hosts)
    (step,) = {int(out.split("saved at step ")[1].split()[0]) for out in said}
    assert 3 <= step < steps
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [str(step)]

    assert all("finished at step 40" in out for out in outputs(two_hosts(stopped, steps)))
    a, b = runs.leaves(calm, steps), runs.leaves(stopped, steps)
    assert a.keys() == b.keys() and len(a) > 50
    assert [path for path in a if not np.array_equal(a[path], b[path])] == []
    assert [row["step"] for row in runs.metrics(stopped)] == list(range(1, steps + 1))
    assert [row["loss_total"] for row in runs.metrics(stopped)] == [row["loss_total"] for row in runs.metrics(calm)]


def script(tmp_path: Path, text: str) -> tuple[str, str]:
    place = tmp_path / "command.sh"
    place.write_text(f'count={tmp_path}/count\necho x >> "$count"\nturn=$(grep -c x "$count")\n{text}')
    return "bash", str(place)


@pytest.mark.parametrize(
    "text, status, turns",
    [
        ("exit 0", 0, 1),                                                           # finished
        ("exit 2", 2, 1),                                                           # bad input stays bad
        ('[ "$turn" = 3 ] || { echo "w: stopped and saved at step 5 of 9"; }', 0, 3),      # preempted and back
        ('[ "$turn" -gt 2 ] || exit 1', 0, 3),                                      # failed twice
        ("exit 1", 1, 4),                                                           # fails for ever
    ],
    ids=["finished", "bad input", "stopped and saved", "fails twice", "fails"],
)
def test_a_worker_starts_its_command_again_until_it_has_finished(tmp_path, text, status, turns):
    process = worker(*script(tmp_path, text))
    process.communicate(timeout=60)
    assert process.returncode == status
    assert (tmp_path / "count").read_text().count("x") == turns


def test_sigterm_reaches_the_command_and_is_waited_for(tmp_path):
    text = f"trap 'sleep 0.5; echo w: stopped and saved at step 5 of 9; exit 0' TERM\ntouch {tmp_path}/ready\n"
    process = worker(*script(tmp_path, text + "while true; do sleep 0.05; done"))
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped and saved" in out
    assert (tmp_path / "count").read_text().count("x") == 1


def test_a_pod_is_asked_for_and_started_by_gcloud(tmp_path):
    """What gcloud is called with, from a stand-in that writes it down."""
    (tmp_path / "gcloud").write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path}/said\n'
        f"case $* in\n*describe*) [ -e {tmp_path}/made ] && echo ACTIVE || exit 1 ;;\n"
        f"*create*) touch {tmp_path}/made ;;\nesac\n"
    )
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "lvr", "TPU_ZONE": "us-east5-b"}
    environment |= {"TPU_TYPE": "v5litepod-16", "TPU_IMAGE": "v2-alpha-tpuv5-lite"}
    for command in (["up"], ["all", "python", "tools/train.py", "--workdir", "gs://bucket/a b"]):
        subprocess.run([LAUNCH, *command], env=environment, check=True, timeout=60)
    said = (tmp_path / "said").read_text().splitlines()
    create = next(line for line in said if "create" in line)
    assert create.startswith("compute tpus queued-resources create lvr --node-id lvr --accelerator-type v5litepod-16")
    assert create.endswith("--runtime-version v2-alpha-tpuv5-lite --spot --zone us-east5-b")
    assert "tpu-vm ssh lvr --worker=all --command cd lvr_jax" in said[-1]
    assert "tools/launch_tpu.sh worker python tools/train.py --workdir gs://bucket/a\\ b" in said[-1]
    del environment["TPU_ZONE"]
    missing = subprocess.run([LAUNCH, "up"], env=environment, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr == "launch_tpu: TPU_ZONE is not set\n"
