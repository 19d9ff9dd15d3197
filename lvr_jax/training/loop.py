"""How does a run go, from config to trained checkpoint? Set up, restore, step, measure, save, stop."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from lvr_jax.data.device import data_shard, to_device
from lvr_jax.training.checkpointing import Checkpoints, restore
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.distributed import StopRequest
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.exporting import export
from lvr_jax.training.flops import batch_flops, peak
from lvr_jax.training.held_out import HeldOut
from lvr_jax.training.input import Input, Synthetic
from lvr_jax.training.metrics import Writer
from lvr_jax.training.state import State

# Steps that may be under way before the first of them is looked at: the host prepares, the device never waits.
AHEAD = 2


class TrainingFailed(RuntimeError):
    """A loss that is not finite; what is known of it lies in the workdir."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """step: steps done; finished: all of the config's, else the run was asked to stop; metrics: of the last step."""

    step: int
    finished: bool
    metrics: dict[str, float]


def train(config: ConfigDict, workdir: str | os.PathLike) -> Outcome:
    """Runs a config in `workdir`, from where an earlier process of the same run was stopped, if there was one.

    Raises ConfigFieldError, DataError, CheckpointError and their like for bad input, TrainingFailed for a loss that is
    not finite.
    """
    # --- Set up -----------------------------------------------------------------------------------------------------
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    experiment = Experiment.of(config)
    with jax.set_mesh(experiment.mesh), contextlib.ExitStack() as closing:
        return _train(experiment, os.fspath(workdir), closing)


def _train(experiment: Experiment, workdir: str, closing: contextlib.ExitStack) -> Outcome:
    c = experiment.config
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_run(folder, c)
    keeper = Checkpoints(workdir, c.checkpoint.every, c.checkpoint.keep, c.checkpoint.keep_every)
    closing.callback(keeper.close)
    process = data_shard(experiment.rows, c.rows)
    if c.synthetic:
        batches = Synthetic(experiment.data, process=process)
    else:
        batches = Input(
            experiment.data, experiment.tokenizer, process=process, shards=c.shards, alignment=experiment.alignment,
            mask_boxes=c.mask_boxes, skip_log=f"{workdir}/skipped",
        )  # fmt: skip
    closing.callback(batches.close)

    # --- Restore ----------------------------------------------------------------------------------------------------
    state = _restore(experiment, keeper, batches)
    done = first = int(state.step)
    writer = Writer(workdir, done, c.log.tensorboard)
    closing.callback(writer.close)
    stop = StopRequest()
    closing.callback(stop.close)
    held_out = HeldOut(experiment) if c.held_out.every else None
    step = experiment.step()
    clock = _Clock(experiment)
    bar = closing.enter_context(_bar(c, done))
    under_way: collections.deque[_Step] = collections.deque()
    last: dict[str, float] = {}
    profiler = _Profiler(c.profile, folder, done)
    closing.callback(profiler.stop)

    def settle(count: int) -> None:
        """Looks at steps until at most `count` are under way; only then has a step truly happened."""
        nonlocal last
        while len(under_way) > count:
            last = _look(under_way.popleft(), folder, clock, writer, bar, c.log.every)

    # --- Loop -------------------------------------------------------------------------------------------------------
    while done < c.steps:
        profiler(done)
        waited = time.perf_counter()
        batch = next(batches)
        arrays = to_device(batch.arrays, experiment.rows, c.rows)
        waited = time.perf_counter() - waited
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, arrays)
        done += 1
        under_way.append(_Step(done, metrics, batch.ids, clock.work(batch.arrays), waited))
        asked = stop(done)
        due = keeper.due(done) or done == c.steps or asked
        measure = held_out is not None and (done % c.held_out.every == 0 or done == c.steps)
        settle(0 if due or measure else AHEAD)
        if measure:
            writer.write(done, held_out.measure(state))
            clock.restart()
        if due:
            keeper.save(done, state, batches.get_state(), _resolved(c))
            writer.flush()
        if asked:
            break

    # --- Stop -------------------------------------------------------------------------------------------------------
    keeper.wait()
    if done >= c.steps and c.checkpoint.export:
        export(experiment, state, folder / "export")
    if batches.skipped:
        logging.warning("%d examples were skipped; %s/skipped.*.jsonl lists them", batches.skipped, workdir)
    if done == first and done >= c.steps:
        logging.info("nothing to do: %s is at step %d of %d", workdir, done, c.steps)
    return Outcome(done, done >= c.steps, last)


def _restore(experiment: Experiment, keeper: Checkpoints, batches: Input | Synthetic) -> State:
    """The latest checkpoint of this run; else the fork that the config names; else the initial checkpoint."""
    init = experiment.config.init
    if (step := keeper.latest()) is not None:
        state, run = keeper.restore(step, experiment.like)
        batches.set_state(run["data"])
        return state
    if init.fork_from:
        step = round(init.fork_at * experiment.config.steps)
        state, run = restore(_checkpoints_of(init.fork_from), step, experiment.like)
        if init.fork_data:
            batches.set_state(run["data"])
        return state
    return experiment.initial_state()


def _checkpoints_of(workdir: str) -> epath.Path:
    return epath.Path(workdir if "://" in workdir else os.path.abspath(workdir)) / "checkpoints"


def _resolved(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json(sort_keys=True))


# Fields that a run may change when it goes on: how it runs, not what it computes.
FREE = ("checkpoint", "compilation_cache", "compute", "held_out", "log", "mesh", "profile", "accumulate", "sharding")


def _refuse_other_run(folder: epath.Path, config: ConfigDict) -> None:
    """A workdir belongs to one config. What is written there first stays; a resumed run must agree with it."""
    path, own = folder / "config.json", _resolved(config)
    if path.exists():
        try:
            held = json.loads(path.read_text())
        except ValueError:      # a process was killed while it wrote
            held = own
        differ = _differences(
            {k: v for k, v in held.items() if k not in FREE}, {k: v for k, v in own.items() if k not in FREE}
        )
        if differ:
            name, there, here = differ[0]
            raise ConfigFieldError(
                f"{folder}: holds a run with {name} = {there!r}, this config has {here!r}"
                + (f" (and {len(differ) - 1} more differ)" if len(differ) > 1 else "")
                + "; choose another workdir, or fork it (init.fork_from)"
            )
    if jax.process_index() == 0:
        path.write_text(json.dumps(own, indent=1, sort_keys=True) + "\n")


def _differences(held: Any, own: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if not isinstance(held, dict) or not isinstance(own, dict):
        return [] if held == own else [(name, held, own)]
    keys = sorted({**held, **own})
    return [d for key in keys for d in _differences(held.get(key), own.get(key), f"{name}.{key}".lstrip("."))]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that has been started: its metrics are still on the device. ids: of this process's rows."""

    number: int
    metrics: dict[str, jax.Array]
    ids: tuple[tuple[str, ...], ...]
    work: tuple[float, int]
    waited: float


def _look(step: _Step, folder: epath.Path, clock: _Clock, writer: Writer, bar: tqdm, every: int) -> dict[str, float]:
    metrics = {k: float(v) for k, v in jax.device_get(step.metrics).items()}
    bad = [name for name in ("loss_total", "grad_norm") if not np.isfinite(metrics[name])]
    if bad:
        report = {"step": step.number, "metrics": {k: str(v) for k, v in metrics.items()}, "rows": step.ids}
        path = folder / f"not_finite_{step.number}_of_process_{jax.process_index()}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        writer.flush()
        raise TrainingFailed(f"step {step.number}: {bad[0]} is {metrics[bad[0]]}; the batch's ids are in {path}")
    clock.count(step)
    bar.update(1)
    if step.number % every == 0:
        metrics |= clock.read()
        writer.write(step.number, metrics)
        writer.flush()
        bar.set_postfix_str(
            f"loss {metrics['loss_total']:.4f} ce {metrics['loss_ce']:.4f} lvr {metrics['loss_lvr']:.3f} "
            f"cos {metrics['cosine']:.3f} {metrics['tokens_per_second']:.0f} tok/s",
            refresh=False,
        )
    return metrics


class _Clock:
    """Speed since it was last read: tokens/s, FLOP/s and their share of the peak, share of time spent on input.

    Tokens and FLOPs are counted on this process's rows and scaled to all; padding counts nothing (training.flops).
    """

    def __init__(self, experiment: Experiment):
        self.config = experiment.network
        self.train_vision = any(path == "vision" for path in experiment.like.trained)
        self.all_rows = experiment.config.rows
        self.peak = peak(jax.devices()[0].device_kind, jax.device_count())
        self.restart()

    def work(self, arrays) -> tuple[float, int]:
        flops, tokens = batch_flops(self.config, arrays, train_vision=self.train_vision)
        share = self.all_rows / len(arrays["tokens"])
        return flops * share, int(tokens * share)

    def restart(self) -> None:
        self.since, self.flops, self.tokens, self.waited, self.steps = time.perf_counter(), 0.0, 0, 0.0, 0

    def count(self, step: _Step) -> None:
        flops, tokens = step.work
        self.flops, self.tokens, self.steps = self.flops + flops, self.tokens + tokens, self.steps + 1
        self.waited += step.waited

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.since
        found = {
            "tokens_per_second": self.tokens / seconds, "seconds_per_step": seconds / max(self.steps, 1),
            "input_wait": self.waited / seconds, "model_tflops_per_second": self.flops / seconds / 1e12,
        }  # fmt: skip
        if self.peak:
            found["model_flops_utilisation"] = self.flops / seconds / self.peak
        self.restart()
        return found


class _Profiler:
    """A trace of `steps` steps from `start` on, counted from the run's first step of this process; on all hosts, for a
    trace on some of them alone stops a pod."""

    def __init__(self, config: ConfigDict, folder: epath.Path, first: int):
        self.begin = first + config.start if config.steps else -1
        self.end, self.folder, self.running = self.begin + config.steps, folder / "profile", False

    def __call__(self, step: int) -> None:
        if step == self.begin:
            jax.profiler.start_trace(os.fspath(self.folder))
            self.running = True
        if step == self.end:
            self.stop()

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


def _bar(c: ConfigDict, done: int) -> tqdm:
    quiet = jax.process_index() != 0 or not c.log.progress
    return tqdm(
        total=c.steps, initial=done, desc=c.name, unit="step", disable=quiet, file=sys.stderr, mininterval=1.0,
        dynamic_ncols=True,
    )  # fmt: skip
