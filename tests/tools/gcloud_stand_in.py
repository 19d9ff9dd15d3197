"""A `gcloud` that plays a scene: what the service says of a slice, and hosts that are folders of this machine.

It stands in a folder on PATH beside its state, `scene.json`:

    states    what `queued-resources describe` says, one after the other; the last one stays. "NONE": not found,
              "ERROR": no answer. `create` and `delete` go on to the next list of `lives`
    refused   what the next calls of `create` say, in turn; then they succeed
    nodes     what `tpu-vm describe` says, in the same way as states
    dropped   how many of the next ssh calls end with 255
    hosts     how many hosts; `ssh --command` runs in the folders host0, host1, ... as their home
    at        {"N": fields}: the scene's fields from the N-th ssh call on; "wiped" takes
              the hosts away with all that runs, "restarted" only what runs

Every call is a line of `said`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parent


def answered(scene: dict, key: str, default: str) -> str:
    """The next of a list; its last one again and again."""
    found = scene.get(key) or [default]
    if len(found) > 1:
        scene[key] = found[1:]
    return found[0]


def wipe(disks: bool) -> None:
    for home in PLACE.glob("host*"):
        try:
            os.killpg(int((home / "lvr_jax_run/pid").read_text()), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        if disks:
            shutil.rmtree(home)


def ssh(command: str, hosts: int) -> int:
    """As gcloud does it: all hosts, their output mixed; its own remarks go to stderr."""
    print("Using ssh batch size of 1. Attempting to SSH into the nodes", file=sys.stderr)
    for number in range(hosts):
        home = PLACE / f"host{number}"
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "HOME": str(home), "PATH": f"{PLACE / 'bin'}:{os.environ['PATH']}"}
        environment["STAND_IN_HOST"] = f"host{number}"
        status = subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode
        if status:
            return status
    return 0


def main(arguments: list[str]) -> int:
    with open(PLACE / "said", "a") as file:
        file.write(" ".join(arguments).replace("\n", " ") + "\n")
    path = PLACE / "scene.json"
    scene = json.loads(path.read_text())
    what, value = " ".join(arguments[2:4]), ""
    status, output, error = 0, "", ""
    if what == "queued-resources describe":
        value = answered(scene, "states", "NONE")
        if value == "NONE":
            status, error = 1, f"ERROR: NOT_FOUND: Resource 'queuedResources/{arguments[4]}' was not found"
        elif value == "ERROR":
            status, error = 1, "ERROR: There was a problem refreshing your current auth tokens"
        else:
            output = value
    elif what == "queued-resources create":
        if scene.get("refused"):
            status, error = 1, scene["refused"].pop(0)
        elif scene.get("lives"):
            scene |= scene["lives"].pop(0)
    elif what == "queued-resources delete":
        scene["states"] = ["NONE"]
    elif what == "tpu-vm describe":
        output = answered(scene, "nodes", "READY")
    elif what == "tpu-vm ssh":
        scene["calls"] = scene.get("calls", 0) + 1
        scene |= scene.get("at", {}).get(str(scene["calls"]), {})
        if scene.pop("wiped", False):
            wipe(True)
        if scene.pop("restarted", False):
            wipe(False)
    if what == "tpu-vm ssh" and scene.get("dropped", 0):
        scene["dropped"] -= 1
        status, error = 255, "ERROR: ssh: connect to host port 22: Connection refused"
    path.write_text(json.dumps(scene))
    if output:
        print(output)
    if error:
        print(error, file=sys.stderr)
    if what == "tpu-vm ssh" and not status:
        return ssh(arguments[arguments.index("--command") + 1], scene.get("hosts", 2))
    if what == "tpu-vm scp":
        for number in range(scene.get("hosts", 2)):
            (PLACE / f"host{number}").mkdir(exist_ok=True)
            subprocess.run(["cp", "-r", arguments[4], PLACE / f"host{number}"], check=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
