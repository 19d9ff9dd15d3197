"""Runs on several hosts as tools/launch_tpu.sh starts and keeps them there, with a gcloud that plays scenes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "training"))
import quick  # noqa: E402
import runs  # noqa: E402
from forked import Process  # noqa: E402

LAUNCH = str(ROOT / "tools" / "launch_tpu.sh")
SMALL = (
    "--config", "configs/n_lvr.py:tiny", "--config.shards=2", "--config.rows=4",
    f"--config.data.tokenizer={ROOT}/tests/golden/tokenizer.json", "--config.data.tokens=256",
    "--config.data.windows=2", "--config.data.max_per_row=2", "--config.data.prefetch=0",
    "--config.data.lookahead=4", "--config.held_out.every=0", "--config.checkpoint.every=0",
    "--config.checkpoint.export=False", "--config.log.every=1", "--config.log.progress=False",
    "--config.log.tensorboard=False", "--config.mesh.data=2",
)  # fmt: skip


def worker(*command: str, **environment: str) -> subprocess.Popen:
    flags = quick.flags(2)
    environment = runs.environment(**{"XLA_FLAGS": flags, "PAUSE": "0.1", **environment})
    return subprocess.Popen(
        [LAUNCH, "worker", *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def two_hosts(two_layers_checkpoint):
    """Starts a run on two hosts, each of them under a worker or, where none has anything to do, without."""
    def start(workdir: Path, steps: int, *more: str, of_second: tuple[str, ...] = (), workers: bool = True) -> list:
        command = [str(ROOT / "tests/multihost/host.py"), "tools/train.py", *SMALL, f"--config.steps={steps}",
                   f"--config.init.checkpoint={two_layers_checkpoint}", "--workdir", str(workdir), *more]  # fmt: skip
        hosts = zip((command, [*command, *of_second]), runs.joined_environments(2, devices=2))
        if workers:
            return [worker(sys.executable, *asked, **environment) for asked, environment in hosts]
        return [Process(asked, environment, ROOT) for asked, environment in hosts]

    return start


def outputs(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    found = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [status, status], found
    return [out for out, _ in found]


def terminate(hosts: list[subprocess.Popen]) -> None:
    """Sends SIGTERM to workers whose commands stand still meanwhile: none of them ends before it."""
    commands = [child for host in hosts for child in psutil.Process(host.pid).children(recursive=True)]
    for command in commands:
        command.suspend()
    for host in hosts:
        host.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    for command in commands:
        command.resume()


@pytest.mark.slow
def test_two_hosts_stopped_by_sigterm_and_started_again_end_as_two_that_were_not(tmp_path, two_hosts):
    steps, calm, stopped = 16, tmp_path / "calm", tmp_path / "stopped"
    often = "--config.checkpoint.minutes=0.005"         # by the first host's clock: both have to save the same steps
    assert all(f"finished at step {steps}" in out for out in outputs(two_hosts(calm, steps, often, workers=False)))
    assert len(list((calm / "checkpoints").iterdir())) > 2

    hosts, waited = two_hosts(stopped, steps), time.monotonic()
    while not (stopped / "metrics.jsonl").exists() or len(runs.metrics(stopped)) < 3:
        assert not (ended := [host.communicate() for host in hosts if host.poll() is not None]), ended
        assert time.monotonic() - waited < 600
        time.sleep(0.02)
    terminate(hosts)
    said = outputs(hosts, 143)
    (step,) = {int(out.split("saved at step ")[1].split()[0]) for out in said}
    assert 3 <= step < steps
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [str(step)]

    assert all(f"finished at step {steps}" in out for out in outputs(two_hosts(stopped, steps)))
    a, b = runs.leaves(calm, steps), runs.leaves(stopped, steps)
    assert a.keys() == b.keys() and len(a) > 50
    assert [path for path in a if not np.array_equal(a[path], b[path])] == []
    assert [row["step"] for row in runs.metrics(stopped)] == list(range(1, steps + 1))
    assert [row["loss_total"] for row in runs.metrics(stopped)] == [row["loss_total"] for row in runs.metrics(calm)]


@pytest.mark.slow
def test_bad_input_of_one_host_ends_both_in_a_line(tmp_path, two_hosts):
    """The other one would wait inside a collective."""
    hosts = two_hosts(tmp_path / "run", 4, of_second=("--config.data.tokenizer=/nowhere",))
    begun = time.monotonic()
    first, second = (host.communicate(timeout=300)[1].splitlines()[-1] for host in hosts)
    assert [host.returncode for host in hosts] == [2, 2]
    for said in (first, second):
        assert said.startswith("train: ") and "/nowhere" in said, said
        assert "the hosts disagree on config.data.tokenizer" in said
    assert time.monotonic() - begun < 90, "heartbeats would have ended it after 100 s"


def script(tmp_path: Path, text: str) -> tuple[str, str]:
    place = tmp_path / "command.sh"
    place.write_text(f'count={tmp_path}/count\necho x >> "$count"\nturn=$(grep -c x "$count")\n{text}')
    return "bash", str(place)


@pytest.mark.parametrize(
    "text, status, turns",
    [
        ("exit 0", 0, 1),                                                           # finished
        ("exit 2", 2, 1),                                                           # bad input stays bad
        ('[ "$turn" = 6 ] || exit 143', 0, 6),                                      # another host was told to stop
        ('[ "$turn" -gt 2 ] || exit 1', 0, 3),                                      # failed twice
        ("exit 1", 1, 4),                                                           # fails for ever
        ('[ "$turn" -gt 9 ] || { echo $((turn / 3)) > "$LVR_JAX_PROGRESS"; exit 1; }', 0, 10),
    ],
    ids=["finished", "bad input", "stopped elsewhere", "fails twice", "fails", "fails between checkpoints"],
)
def test_a_worker_starts_its_command_again_until_it_has_finished(tmp_path, text, status, turns):
    process = worker(*script(tmp_path, text))
    process.communicate(timeout=60)
    assert process.returncode == status
    assert (tmp_path / "count").read_text().count("x") == turns


@pytest.mark.parametrize("words", [["worker"], ["all"], ["keep"], ["jobset"], ["jobset", "image"]], ids=" ".join)
def test_a_command_that_is_missing_is_asked_for_and_nothing_is_done(pod, words):
    pod.scene(**NEW)
    status, _, err = pod.run(*words)
    assert status == 2 and err.startswith(f"launch_tpu: {words[0]}: expected ") and not pod.said("")


def test_a_command_that_ended_before_the_worker_looked_has_its_own_status():
    """Bash forgets a child's number as soon as it has ended: here a look at it would come half a second late."""
    late = {"BASH_FUNC_kill%%": '() { sleep 0.5; builtin kill "$@"; }'}
    process = worker("bash", "-c", "exit 2", **late)
    process.communicate(timeout=60)
    assert process.returncode == 2


def test_sigterm_reaches_the_command_and_is_waited_for(tmp_path):
    text = f"trap 'sleep 0.5; echo saved; exit 143' TERM\ntouch {tmp_path}/ready\n"
    process = worker(*script(tmp_path, text + "while true; do sleep 0.05; done"))
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "saved" in out
    assert (tmp_path / "count").read_text().count("x") == 1


def test_sigterm_between_two_tries_ends_the_worker(tmp_path):
    process = worker(*script(tmp_path, "exit 1"), PAUSE="60")
    while not (tmp_path / "count").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


# The archive that every host gets, two seconds otherwise.
QUICKLY_PACKED = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "tar.tar.gz.command", "GIT_CONFIG_VALUE_0": "gzip -cn1"}


class Pod:
    """tools/launch_tpu.sh beside a gcloud that plays a scene."""

    def __init__(self, place: Path):
        self.place = place
        for name, text in (
            ("hostname", 'echo "$STAND_IN_HOST"'),
            ("uv", '[ "$1" != venv ] || { mkdir -p "$HOME/env/bin" && touch "$HOME/env/bin/activate"; }'),
        ):
            (place / "bin").mkdir(exist_ok=True)
            (place / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (place / "bin" / name).chmod(0o755)
        stand_in = Path(__file__).parent / "gcloud_stand_in.py"
        shutil.copy(stand_in, place)
        (place / "gcloud").write_text(f'#!/bin/bash\nexec {sys.executable} -I -S {place}/gcloud_stand_in.py "$@"\n')
        (place / "gcloud").chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{place}:{os.environ['PATH']}", "TPU": "lvr", "TPU_ZONE": "us-east5-b",
            "TPU_TYPE": "v5litepod-16", "TPU_IMAGE": "v2-alpha-tpuv5-lite", "POLL": "0.1", "LAG": "20",
            "NOTICE": "1", "REFUSED": "0.1", "PAUSE": "0.1", "STORE": str(place), **QUICKLY_PACKED,
        }  # fmt: skip

    def scene(self, **fields) -> None:
        (self.place / "scene.json").write_text(json.dumps(fields))

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [LAUNCH, *command], env={**self.environment, **environment}, text=True, cwd=self.place,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *command: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def said(self, word: str) -> list[str]:
        path = self.place / "said"
        return [line for line in (path.read_text().splitlines() if path.exists() else ()) if word in line]

    def wait_for(self, name: str) -> None:
        waited = time.monotonic()
        while not (self.place / name).exists():
            assert time.monotonic() - waited < 60, name
            time.sleep(0.02)


ACTIVE = {"states": ["ACTIVE"]}
NEW = {"lives": [{"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]}]}
QUOTA = "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded."
# Waits for ever on its first start, finishes on the second.
TWICE = ("bash", "-c", 'mkdir "$STORE/begun_$STAND_IN_HOST" 2>/dev/null || exit 0; sleep 300')


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    yield pod
    for path in tmp_path.glob("host*/lvr_jax_run/pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:      # it has ended
            pass


def test_a_pod_is_asked_for_and_waited_for(pod):
    pod.scene(**NEW)
    assert pod.run("up")[0] == 0
    (create,) = pod.said(" create ")
    assert create.startswith("compute tpus queued-resources create lvr --node-id lvr --accelerator-type v5litepod-16")
    assert create.endswith("--runtime-version v2-alpha-tpuv5-lite --spot --zone us-east5-b")
    pod.scene(**NEW)
    assert pod.run("up", TPU_NODES="2", TPU_OPTIONS="--reserved")[0] == 0
    assert "--node-count 2 --node-prefix lvr" in pod.said(" create ")[1] and "--reserved" in pod.said(" create ")[1]
    missing = pod.run("up", TPU_ZONE="")
    assert missing[0] == 2 and missing[2] == "launch_tpu: TPU_ZONE is not set\n"


def test_a_request_refused_for_good_ends_keep(pod):
    pod.scene(refused=["ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"] * 9)
    status, _, err = pod.run("keep", "true")
    assert status == 2 and "PERMISSION_DENIED" in err and len(pod.said(" create ")) == 1


@pytest.mark.slow
def test_a_request_refused_for_now_is_made_again_a_few_times(pod):
    pod.scene(refused=[QUOTA] * 2, **NEW)
    status, _, err = pod.run("keep", "true")
    assert status == 0 and err.count("RESOURCE_EXHAUSTED") == 2 and len(pod.said(" create ")) == 3
    pod.scene(refused=[QUOTA] * 9)
    status, _, err = pod.run("keep", "true", REFUSALS="2")
    assert status == 75 and err.count("RESOURCE_EXHAUSTED") == 3


@pytest.mark.parametrize("states", [["ERROR"], ["TELEPORTING"]], ids=["no login", "a state of next year"])
def test_what_the_service_does_not_say_ends_in_a_line_and_asks_for_nothing(pod, states):
    pod.scene(states=states)
    status, _, err = pod.run("up")
    assert status == 1 and ("auth tokens" in err or "TELEPORTING" in err) and not pod.said(" create ")


def test_a_slice_that_failed_is_deleted_and_asked_for_again(pod):
    pod.scene(states=["FAILED"], **NEW)
    assert pod.run("up")[0] == 0
    assert len(pod.said(" delete ")) == len(pod.said(" create ")) == 1


@pytest.mark.slow
def test_a_preemption_that_the_service_does_not_know_of_yet_is_waited_out(pod):
    """Hosts are gone at the tenth ssh; the slice reads ACTIVE, then its node PREEMPTED; a new one finishes the run."""
    lag = {"wiped": True, "dropped": 30, "nodes": ["READY", "READY", "READY", "PREEMPTED"]}
    pod.scene(**ACTIVE, at={"10": lag}, lives=[{**ACTIVE, "dropped": 0, "nodes": ["READY"]}])
    status, _, err = pod.run("keep", *TWICE)
    assert status == 0 and "lvr was preempted" in err
    assert len(pod.said(" delete ")) == len(pod.said(" create ")) == 1 and len(pod.said("host_begin")) == 2


@pytest.mark.slow
def test_a_notice_stops_the_run_and_the_next_slice_finishes_it(pod):
    """The command ends with 143 on all hosts while they still answer; then the slice is SUSPENDED."""
    stopped = ("bash", "-c", 'mkdir "$STORE/begun_$STAND_IN_HOST" 2>/dev/null || exit 0; kill -TERM $PPID; exit 143')
    states = ["ACTIVE"] * 8 + ["SUSPENDED"]
    pod.scene(states=states, lives=[{**ACTIVE, "wiped": True}])
    status, _, err = pod.run("keep", *stopped, NOTICE="10")
    assert status == 0 and "lvr was preempted" in err and len(pod.said("host_begin")) == 2


@pytest.mark.slow
def test_a_broken_connection_is_followed_again_and_starts_nothing(pod):
    pod.scene(**ACTIVE, at={"5": {"dropped": 7}})
    status, _, err = pod.run("keep", "bash", "-c", "sleep 3")
    assert status == 0 and len(pod.said("host_begin")) == 1 and not pod.said(" delete ")


@pytest.mark.slow
def test_hosts_that_were_started_anew_begin_again(pod):
    pod.scene(**ACTIVE, at={"6": {"restarted": True}})
    status, _, err = pod.run("keep", *TWICE)
    assert status == 0 and "hosts were started anew" in err and len(pod.said("host_begin")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, 2])
def test_a_command_that_fails_by_itself_ends_keep_with_its_status_and_log(pod, status):
    pod.scene(**ACTIVE)
    text = f"echo the reason; [ $STAND_IN_HOST = host0 ] || exit {status}"
    found, _, err = pod.run("keep", "bash", "-c", text, RETRIES="0")
    assert found == status and "host1: the reason" in err and f"host1 ended {status}" in err
    assert not pod.said(" delete ") and len(pod.said("host_begin")) == 1


def test_the_doctor_says_what_one_host_has_found(pod):
    pod.scene(**ACTIVE)
    python = pod.place / "bin" / "python"
    python.write_text('#!/bin/bash\necho "$@: no bucket"; [ $STAND_IN_HOST = host0 ] || exit 2\n')
    python.chmod(0o755)
    assert pod.run("setup")[0] == 0
    status, _, err = pod.run("doctor", "gs://bucket/a b")
    assert status == 2 and "host1: tools/doctor.py gs://bucket/a b: no bucket" in err and "host1 ended 2" in err
    python.write_text("#!/bin/bash\necho all is well\n")
    status, out, _ = pod.run("doctor", "gs://bucket/a b")
    assert status == 0 and "host0: all is well" in out and "host1: all is well" in out


@pytest.mark.slow
def test_a_run_goes_on_without_the_machine_that_started_it(pod):
    pod.scene(**ACTIVE)
    assert pod.run("setup")[0] == 0
    laptop = pod.start("all", "bash", "-c", 'touch "$STORE/on_$STAND_IN_HOST"; sleep 2; echo a b "c d"')
    pod.wait_for("on_host1")
    laptop.kill()
    laptop.communicate()
    assert pod.run("status")[1].split("\n")[:2] == ["host0 running", "host1 running"]
    status, _, err = pod.run("all", "true")
    assert status == 1 and "has a run already" in err
    assert pod.run("follow")[0] == 0
    assert "host1: a b c d" in pod.run("logs")[1]


@pytest.mark.slow
def test_a_run_that_was_stopped_is_no_success(pod):
    pod.scene(**ACTIVE)
    text = 'trap "exit 143" TERM; touch "$STORE/on_$STAND_IN_HOST"; while :; do sleep 0.1; done'
    keep = pod.start("keep", "bash", "-c", text)
    pod.wait_for("on_host0")
    pod.wait_for("on_host1")
    assert pod.run("stop")[0] == 0
    _, err = keep.communicate(timeout=60)
    assert keep.returncode == 143 and "stopped before it had finished" in err


def test_the_jobset_says_the_command_word_by_word():
    hazards = ['--config.name="a" #: {b}', "back\\slash", "$(HOME) $x", "two\nlines\tand ü", ""]
    command = ["python", "tools/train.py", *hazards]
    environment = {**os.environ, "TPU": "lvr", "GKE_ACCELERATOR": "tpu-v5-lite-podslice", "GKE_TOPOLOGY": "4x4"}
    environment["GKE_HOSTS"] = "4"
    made = subprocess.run([LAUNCH, "jobset", "image:1", *command], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    job = yaml.safe_load(made.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    # Kubernetes reads $$( as $( and would otherwise put a variable there.
    said = [word.replace("$$(", "$(") for word in container["command"]]
    assert said == ["tools/launch_tpu.sh", "worker", *command] and container["image"] == "image:1"
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    for wrong in ({"GKE_HOSTS": "4\nx: y"}, {"GKE_SLICES": "two"}):
        refused = subprocess.run(
            [LAUNCH, "jobset", "image:1", "true"], env={**environment, **wrong}, capture_output=True, text=True
        )
        assert refused.returncode == 2 and "expected a whole number" in refused.stderr
