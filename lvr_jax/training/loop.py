"""Runs a config from its first step to a trained checkpoint: set up, restore, step, measure, save, stop."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from lvr_jax.data.device import Placement, to_device
from lvr_jax.progress import tqdm
from lvr_jax.training import workdir as workdirs
from lvr_jax.training.checkpointing import Checkpoints, read_run, restore
from lvr_jax.training.compilation import use_compilation_cache
from lvr_jax.training.distributed import StopRequest
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.exporting import check_dtype, export
from lvr_jax.training.flops import batch_flops, peak
from lvr_jax.training.held_out import HeldOut
from lvr_jax.training.input import Input, Synthetic
from lvr_jax.training.metrics import Writer
from lvr_jax.training.state import State
from lvr_jax.training.watchdog import Watchdog

# Steps that may be in flight before the first of them is logged, so that the device never waits for the host.
AHEAD = 2
# Names a file that gets the step of the latest checkpoint: what tools/launch_tpu.sh calls progress.
PROGRESS = "LVR_JAX_PROGRESS"


class TrainingFailed(RuntimeError):
    """A loss that is not finite; what is known of it lies in the workdir."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """step: steps done; finished: all of the config's, else the run was asked to stop by `signal` (SIGTERM stands for a
    preemption's notice too); metrics: of the last step."""

    step: int
    finished: bool
    metrics: dict[str, float]
    signal: int = signal.SIGTERM


def train(config: ConfigDict, workdir: str | os.PathLike) -> Outcome:
    """Runs a config in `workdir`, from where an earlier process of the same run was stopped, if there was one.

    Raises ConfigFieldError, DataError, CheckpointError and their like for bad input, TrainingFailed for a loss that is
    not finite, NotSaved for a checkpoint that could not be written.
    """
    # --- Set up -----------------------------------------------------------------------------------------------------
    with contextlib.ExitStack() as closing:
        stop = StopRequest()        # from here on a signal is remembered, whatever is under way
        closing.callback(stop.close)
        check_dtype(config.export.dtype)
        use_compilation_cache(config.compilation_cache, workdir)
        experiment = Experiment.from_config(config)
        closing.enter_context(jax.set_mesh(experiment.mesh))
        return _train(experiment, os.fspath(workdir), stop, closing)


def _train(experiment: Experiment, workdir: str, stop: StopRequest, closing: contextlib.ExitStack) -> Outcome:
    c = experiment.config
    folder = epath.Path(workdir)
    workdirs.refuse_other(folder, workdirs.read_config(folder), c)
    watchdog = Watchdog(workdir, c.hang_minutes)
    closing.callback(watchdog.close)
    placement = Placement.of(experiment.rows, c.rows)
    if c.synthetic:
        batches = Synthetic(experiment.data, placement=placement, branches=experiment.branches)
    else:
        batches = Input(
            experiment.data, experiment.tokenizer, placement=placement, shards=c.shards, alignment=experiment.alignment,
            branches=experiment.branches, mask_boxes=c.mask_boxes, skip_log=f"{workdir}/skipped",
        )  # fmt: skip
    closing.callback(batches.close)
    held_out = HeldOut(experiment) if c.held_out.every else None
    checkpoints = Checkpoints(      # makes its folder, so that it comes after whatever refuses a config
        workdir, c.checkpoint.every, c.checkpoint.keep, c.checkpoint.keep_every, c.checkpoint.minutes, AHEAD
    )
    closing.callback(checkpoints.close)

    # --- Restore ----------------------------------------------------------------------------------------------------
    state = _restore(experiment, checkpoints, batches)
    done = first = int(state.step)
    writer = Writer(workdir, done, c.log.tensorboard)
    closing.callback(writer.close)
    step = experiment.step()
    clock = _Clock(experiment)
    bar = closing.enter_context(_bar(c, done))
    in_flight: collections.deque[_Step] = collections.deque()
    last: dict[str, float] = {}
    profiler = _Profiler(c.profile, folder, done)
    closing.callback(profiler.stop)
    if jax.process_index() == 0:
        workdirs.write_config(folder, c)

    def drain(count: int) -> None:
        """Logs finished steps until at most `count` are in flight; logging a step waits for it on the device."""
        nonlocal last
        while len(in_flight) > count:
            last = _log_step(in_flight.popleft(), folder, clock, writer, bar, c.log.every)

    # --- Loop -------------------------------------------------------------------------------------------------------
    while done < c.steps and not (done == first and stop.before_any_step):
        profiler(done)
        waited = time.perf_counter()
        batch = next(batches)
        arrays = to_device(batch.arrays, experiment.rows, placement)
        waited = time.perf_counter() - waited
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, arrays)
        done += 1
        in_flight.append(_Step(done, metrics, batch.ids, clock.work(batch.arrays), waited))
        asked = stop(done)
        due = checkpoints.due(done) or done == c.steps or asked      # `due` is asked at every step
        measure = held_out is not None and (done % c.held_out.every == 0 or done == c.steps)
        drain(0 if due or measure else AHEAD)
        watchdog.beat(done - len(in_flight))
        if measure:
            writer.write(done, held_out.measure(state))
            clock.restart()
        if due:
            checkpoints.save(done, state, batches.get_state(), workdirs.resolved(c))
            _tell_progress(done)
            writer.flush()
        if asked:
            break

    # --- Stop -------------------------------------------------------------------------------------------------------
    watchdog.close()        # writing the last checkpoint and the export takes as long as it takes
    checkpoints.wait()
    if done >= c.steps and c.checkpoint.export:
        export(experiment, state, folder / "export")
    if batches.skipped:
        logging.warning("%d examples were skipped; %s/skipped.*.jsonl lists them", batches.skipped, workdir)
    if done == first and done >= c.steps:
        logging.info("nothing to do: %s is at step %d of %d", workdir, done, c.steps)
    return Outcome(done, done >= c.steps, last, stop.number or signal.SIGTERM)


def _tell_progress(step: int) -> None:
    if path := os.environ.get(PROGRESS):
        epath.Path(path).write_text(f"{step}\n")


def _restore(experiment: Experiment, checkpoints: Checkpoints, batches: Input | Synthetic) -> State:
    """The latest checkpoint of this run; else the fork that the config names; else the initial checkpoint."""
    init = experiment.config.init
    if (step := checkpoints.latest()) is not None:
        run = read_run(checkpoints.folder, step)
        workdirs.refuse_other(checkpoints.folder / str(step), run.get("config"), experiment.config)
        state, run = checkpoints.restore(step, experiment.like)
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


@dataclasses.dataclass(frozen=True)
class _Step:
    """A dispatched step whose metrics are still on the device. ids: of this process's rows."""

    number: int
    metrics: dict[str, jax.Array]
    ids: tuple[tuple[str, ...], ...]
    work: tuple[float, int]
    waited: float


def _log_step(
    step: _Step, folder: epath.Path, clock: _Clock, writer: Writer, bar: tqdm, every: int
) -> dict[str, float]:
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
