"""Saves and restores a run with Orbax: state, position in the data, config and versions, asynchronously.

    WORKDIR/checkpoints/STEP/state      the State, sharded as it was, readable under any mesh
    WORKDIR/checkpoints/STEP/run        JSON: iterator states of all data shards, resolved config, package versions

Orbax gives a checkpoint its name when it is complete, so a killed process leaves none that is half-written.
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lvr_jax.checkpoints import CheckpointError
from lvr_jax.checkpoints.orbax_io import hush_threads
from lvr_jax.training.distributed import gather, store
from lvr_jax.training.state import State

# Bytes of an array that each of its replicas writes at least. Orbax would cut any array between them, with a program
# for each shape: of 180 programs of a small run on eight devices, 176.
SLICE_BYTES = 2**20
PACKAGES = ("lvr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class NotSaved(OSError):
    """A checkpoint that could not be written: a full disk, no access, a store that does not answer."""


def versions() -> dict[str, str]:
    """Versions of the packages that a checkpoint depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class Checkpoints:
    """The checkpoints of one workdir.

    every: steps between two; minutes: how long after one the next is due whatever the step (0: neither); keep: how
    many of the latest to keep (0: all); keep_every: multiples that are always kept (0: none); ahead: steps that a
    process may have started beyond another's last finished one. `save` returns once the state is copied off the
    devices, and raises NotSaved for this checkpoint or the one before.
    """

    def __init__(
        self, workdir: str | os.PathLike, every: int = 500, keep: int = 0, keep_every: int = 0, minutes: float = 0,
        ahead: int = 2,
    ):  # fmt: skip
        self.folder = epath.Path(workdir) / "checkpoints"
        if "://" not in os.fspath(workdir):
            self.folder = epath.Path(os.path.abspath(self.folder))
        self.every, self._clock = every, _Clock(minutes, ahead)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, keep_period=keep_every or None, step_prefix=None, create=True,
            cleanup_tmp_directories=True, enable_async_checkpointing=True,
        )  # fmt: skip
        hush_threads()
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry), "run": ocp.JsonCheckpointHandler()
        }  # fmt: skip
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at this step. Every process asks after every step and gets the same answer."""
        by_time = self._clock(step)
        return by_time or (self.every > 0 and step % self.every == 0)

    def save(self, step: int, state: State, data: Sequence[dict], config: dict) -> None:
        """data: this process's iterator states; every process calls this."""
        if self.latest() == step:
            return
        states = {json.dumps(s, sort_keys=True): s for own in gather(list(data)) for s in own}
        run = {"step": step, "data": list(states.values()), "config": config, "versions": versions()}
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(run))
        with _failing(self.folder / str(step)):
            self._manager.save(step, args=args)
        self._clock.restart()

    def restore(self, step: int, like: State) -> tuple[State, dict]:
        """(state with the shardings of `like`, run). CheckpointError if it is of another network or optimizer."""
        return restore(self.folder, step, like)

    def wait(self) -> None:
        """Waits until saves are complete. Raises NotSaved if one failed."""
        with _failing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _failing(self.folder):
            # Orbax clears temporary folders in a thread that its close() leaves alone; a program that ends meanwhile
            # prints that thread's traceback (orbax 0.12.8).
            clearing = getattr(self._manager, "_cleanup_tmp_directory_future", None)
            if clearing is not None:
                clearing.result()
            self._manager.close()


class _Clock:
    """Says at which step `minutes` have passed since the last checkpoint: the same step in every process.

    The first process looks at its clock and names a step in the key-value store of JAX's coordination service, far
    enough ahead that no process can have passed it: a step is started only when the one `ahead` + 1 before is finished,
    which takes all processes.
    """

    def __init__(self, minutes: float, ahead: int):
        self.seconds, self._margin = 60.0 * minutes, ahead + 2
        self._turn, self._since = 0, time.monotonic()
        self._at: int | None = None

    def __call__(self, step: int) -> bool:
        if not self.seconds:
            return False
        alone, name = jax.process_count() == 1, f"lvr_jax/checkpoint/{self._turn}"
        if self._at is None and jax.process_index() == 0 and time.monotonic() - self._since >= self.seconds:
            self._at = step if alone else step + self._margin
            if not alone:
                store().key_value_set(name, str(self._at))
        elif self._at is None and not alone:
            try:
                self._at = int(store().key_value_try_get(name))
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" not in str(error):
                    raise
        return self._at is not None and step >= self._at

    def restart(self) -> None:
        self._turn, self._at, self._since = self._turn + 1, None, time.monotonic()


@contextlib.contextmanager
def _failing(place) -> Iterator[None]:
    """Every library's way of saying that something could not be written -> NotSaved, one line."""
    try:
        yield
    except NotSaved:
        raise
    except Exception as error:      # Orbax hands on what tensorstore, fsspec and the system raise
        text = " ".join(str(error).split())
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in text
        said = "the disk is full" if full else f"{type(error).__name__}: {text[:300]}"
        raise NotSaved(f"{place}: the checkpoint could not be written ({said})") from error


def restore(folder: epath.Path, step: int, like: State) -> tuple[State, dict]:
    """As `Checkpoints.restore`, from any run's checkpoints."""
    place = epath.Path(folder) / str(step)
    run = read_run(folder, step)
    with _damaged(place):
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
    with _damaged(place):
        return ocp.StandardCheckpointer().restore(place / "state", like), run


@contextlib.contextmanager
def _damaged(place) -> Iterator[None]:
    """Orbax's and tensorstore's many ways of saying that a file is missing or not what it should be, as one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise CheckpointError(
            f"{place}: damaged, cannot be read ({type(error).__name__}: {text[:200]}); remove it to go on from the one "
            "before"
        ) from error


def read_run(folder: epath.Path, step: int) -> dict[str, Any]:
    """Step, iterator states, config and versions of a checkpoint."""
    place = epath.Path(folder) / str(step)
    if not place.exists():
        steps = sorted(int(p.name) for p in epath.Path(folder).iterdir() if p.name.isdecimal()) if (
            epath.Path(folder).exists()
        ) else []
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are {steps or 'none'}")
    with _damaged(place):
        return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(place / "run")


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, whatever the containers are: a restored tree has dicts where ours has records."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))  # noqa: E731
    return {"/".join(map(name, path)): leaf for path, leaf in found}
