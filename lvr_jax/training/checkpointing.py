"""How does a run survive? State, place in the data, config and versions, written by Orbax while training goes on.

    WORKDIR/checkpoints/STEP/state      the State, sharded as it was, readable under any mesh
    WORKDIR/checkpoints/STEP/run        JSON: iterator states of all data shards, resolved config, package versions

Orbax gives a checkpoint its name when it is complete, so a killed process leaves none that is half-written.
"""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lvr_jax.checkpoints import CheckpointError
from lvr_jax.training.distributed import gather
from lvr_jax.training.state import State

PACKAGES = ("lvr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class Checkpoints:
    """The checkpoints of one workdir.

    every: steps between two; keep: how many of the latest to keep (0: all); keep_every: multiples that are always
    kept (0: none). `save` returns once the state is copied off the devices.
    """

    def __init__(self, workdir: str | os.PathLike, every: int = 500, keep: int = 0, keep_every: int = 0):
        self.folder = epath.Path(workdir) / "checkpoints"
        if "://" not in os.fspath(workdir):
            self.folder = epath.Path(os.path.abspath(self.folder))
        self.every = every
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, keep_period=keep_every or None, step_prefix=None, create=True,
            cleanup_tmp_directories=True, enable_async_checkpointing=True,
        )  # fmt: skip
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, state: State, data: Sequence[dict], config: dict) -> None:
        """data: this process's iterator states; every process calls this."""
        if self.latest() == step:
            return
        states = {json.dumps(s, sort_keys=True): s for own in gather(list(data)) for s in own}
        run = {"step": step, "data": list(states.values()), "config": config, "versions": versions()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._manager.save(step, args=args)

    def restore(self, step: int, like: State) -> tuple[State, dict]:
        """(state with the shardings of `like`, run). CheckpointError if it is of another network or optimizer."""
        return restore(self.folder, step, like)

    def wait(self) -> None:
        """Until what was saved is complete; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def restore(folder: epath.Path, step: int, like: State) -> tuple[State, dict]:
    """As `Checkpoints.restore`, from any run's checkpoints."""
    place = epath.Path(folder) / str(step)
    run = read_run(folder, step)
    stored = ocp.StandardCheckpointer().metadata(place / "state")
    tree = stored.item_metadata.tree if hasattr(stored, "item_metadata") else stored
    held = {path: tuple(leaf.shape) for path, leaf in _by_path(tree).items()}
    wanted = {path: tuple(leaf.shape) for path, leaf in _by_path(like).items()}
    differ = [path for path in {**held, **wanted} if held.get(path) != wanted.get(path)]
    if differ:
        path = differ[0]
        raise CheckpointError(
            f"{place}: checkpoint of another config: {path} is {held.get(path)}, expected {wanted.get(path)}"
            + (f" (and {len(differ) - 1} more)" if len(differ) > 1 else "")
        )
    return ocp.StandardCheckpointer().restore(place / "state", like), run


def read_run(folder: epath.Path, step: int) -> dict[str, Any]:
    """Step, iterator states, config and versions of a checkpoint."""
    place = epath.Path(folder) / str(step)
    if not place.exists():
        steps = sorted(int(p.name) for p in epath.Path(folder).iterdir() if p.name.isdigit()) if (
            epath.Path(folder).exists()
        ) else []
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are {steps or 'none'}")
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(place / "run")


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, whatever the containers are: a restored tree has dicts where ours has records."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))  # noqa: E731
    return {"/".join(map(name, path)): leaf for path, leaf in found}
