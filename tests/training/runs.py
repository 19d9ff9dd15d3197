"""A run that is small enough for tests, and a way to start it in processes of its own.

    python tests/training/runs.py '[{"variant": "lvr", "workdir": "...", "steps": 4}]'

runs one or more of them, one after the other, in this process.
"""

import functools
import json
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "tests/multihost/host.py"
sys.path[:0] = [p for p in map(str, (ROOT, ROOT / "tests", ROOT / "tools")) if p not in sys.path]
import quick  # noqa: E402
from forked import Process  # noqa: E402
from two_layers import NAME  # noqa: E402


def small(variant: str = "lvr", **changes):
    """The tiny config of a variant with a random network and rows of one or two questions; changes by dotted name
    (`__` for the dot)."""
    import importlib

    c = importlib.import_module(f"configs.{variant}").get_config("tiny")
    c.steps, c.rows, c.model = 4, 4, NAME
    c.init.checkpoint, c.data.tokenizer = "", str(ROOT / "tests/golden/tokenizer.json")
    c.data.sources.digits.size = 40
    c.data.prefetch, c.data.lookahead = 0, 4
    if not c.alignment.latents:
        c.data.tokens, c.data.windows, c.data.max_per_row = 256, 2, 2
    c.held_out.every, c.held_out.examples, c.held_out.max_new_tokens = 0, 4, 8
    c.checkpoint.every, c.checkpoint.export = 2, False
    c.log.every, c.log.progress, c.log.tensorboard = 1, False, False
    for name, value in changes.items():
        *path, last = name.split("__")
        node = c
        for part in path:
            node = node[part]
        with node.ignore_type():
            node[last] = value
    return c


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": quick.flags(devices), "PYTHONPATH": str(ROOT), **more}


def start(*runs: dict, devices: int = 1, **more: str) -> Process:
    """A process that does these runs: {"variant", "workdir", and changes}."""
    return Process([HOST, __file__, json.dumps(runs)], environment(devices, **more), ROOT)


def finish(process: Process, timeout: float = 600) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return out


def joined_environments(count: int, devices: int = 1) -> list[dict[str, str]]:
    """What `count` processes of so many devices each need to find each other; also where it is one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return [
        environment(devices, **joined, JAX_PROCESS_ID=str(i)) | {"PYTHONPATH": places} for i in range(count)
    ]


def start_processes(run: dict, count: int, devices: int) -> list[Process]:
    """The same run on `count` processes of so many devices each, joined by jax.distributed."""
    return [start(run, devices=devices, **joined) for joined in joined_environments(count, devices)]


def leaves(workdir, step: int) -> dict:
    """Every array of a checkpoint by path, on the host."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    place, checkpointer = Path(workdir).absolute() / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
    held = checkpointer.metadata(place).item_metadata.tree
    plainly = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), held)
    tree = checkpointer.restore(place, restore_args=plainly)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def item(workdir, step: int) -> dict:
    """What a checkpoint says besides the state."""
    return json.loads((Path(workdir) / "checkpoints" / str(step) / "run" / "metadata").read_text())


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    import jax

    from lvr_jax.training import experiment, loop, partitioning
    from lvr_jax.training.distributed import initialize
    from lvr_jax.training.loop import train

    initialize()
    for run in json.loads(sys.argv[1]):
        variant, workdir, stop_after = run.pop("variant"), run.pop("workdir"), run.pop("stop_after", None)
        if order := run.pop("order", None):         # as if the torus put its devices in this order
            placed = [jax.devices()[number] for number in order]
            experiment.make_mesh = functools.partial(partitioning.make_mesh, devices=placed)
        if slices := run.pop("slices", None):       # as if its devices lay in so many slices, one after the other
            partitioning._slice_of = lambda device, count=slices: device.id * count // jax.device_count()
        config = small(variant, **run)
        if stop_after is not None:      # as if it had been asked to, at that step
            loop.StopRequest.__call__ = lambda self, step, last=stop_after: step >= last
        print(train(config, workdir).step, flush=True)


if __name__ == "__main__":
    main()
