"""Does jobs on all cores, once, with a forecast that learns: one process of one thread a core, warm from job to job.

A job that is done leaves WORKDIR/jobs/NAME.json with its key; one with another key is done again from nothing, one
that was killed goes on where its program left off.
"""

import dataclasses
import json
import os
import re
import select
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.shipped import ROOT
from lvr_jax.multihost.hosts import StopSignal
from lvr_jax.progress import tqdm
from study.jobs import Job
from study.worker import Worker

SHOWN = 15          # lines of a failed job's log
BELIEVED = 120.0    # seconds of work after which this machine's own pace counts as much as the expected one
MEMORY = 3 * 2**30  # bytes; a process that has taken more is not given another job
PAUSE = 0.2         # seconds between two looks at what is going on

# glibc's allocator: a step's buffers stay with the process. Given back and taken anew, each step faults them in page by
# page, a quarter of the time of a step of the tiny network (2026-11).
KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**12),
    "MALLOC_TOP_PAD_": str(2**28),
}  # fmt: skip


class JobFailed(RuntimeError):
    """A program that ended with an error; the end of what it said."""


@dataclasses.dataclass
class _Running:
    job: Job
    worker: Worker
    began: float


class Workers:
    """`run` does what is missing of a list of jobs."""

    def __init__(self, workdir: Path, count: int):
        self.workdir, self.cores = workdir, _cores(count)
        self.running: list[_Running] = []
        self.idle: list[Worker] = []
        self.compiled = {""}

    def run(
        self, jobs: Sequence[Job], progress: bool = True, ended: Callable[[Job, JobFailed | None], bool] | None = None,
        stop: StopSignal | None = None,
    ) -> None:  # fmt: skip
        """Raises JobFailed for the first job that fails, Stopped where `stop` does; nothing is left running.

        ended: is told of every job's end, with its failure if it failed; where it answers True to one, the others go
        on, without those that needed it. ValueError for two jobs of one file name.
        """
        self._ended = ended or (lambda job, failure: False)
        marks: dict[Path, str] = {}
        for job in jobs:
            if (other := marks.setdefault(self._mark(job), job.name)) != job.name:
                raise ValueError(f"{job.name!r} and {other!r} have one file name, expected one of them in other words "
                                 "(0.5 for .5)")
        (self.workdir / "jobs").mkdir(parents=True, exist_ok=True)
        (self.workdir / "logs").mkdir(exist_ok=True)
        done = {job.name for job in jobs if self.is_done(job)}
        waiting = [job for job in jobs if job.name not in done]
        self.compiled |= {job.programs for job in jobs if job.name in done}
        if not waiting:
            return
        bar = tqdm(total=100, unit="%", disable=not progress, bar_format="{desc} {bar} {n:3.0f} %{postfix}")
        forecast = Forecast(waiting, len(self.cores))
        try:
            while waiting or self.running:
                if stop is not None:
                    stop.check()
                self._settle(done, forecast, waiting)
                for core in [c for c in self.cores if c not in {r.worker.core for r in self.running}]:
                    if job := self._next([job for job in waiting if set(job.after) <= done], waiting):
                        waiting.remove(job)
                        self._start(job, core)
                share, left = forecast.look(done, self.running)
                bar.n = 100 * share
                bar.set_description_str(", ".join(r.job.name for r in self.running)[:60] or "done", refresh=False)
                bar.set_postfix_str(f"about {max(left / 60, 1):.0f} min left", refresh=True)
                select.select([r.worker.process.stdout for r in self.running], [], [], PAUSE)
        finally:
            self._end([*self.idle, *(r.worker for r in self.running)])
            self.running.clear()
            self.idle.clear()
            bar.close()

    def _next(self, ready: Sequence[Job], waiting: Sequence[Job]) -> Job | None:
        """Of equal rank, long jobs that others wait for come first, so that no core is idle at the end; before them
        those that need not compile what another core is just compiling, as later it is loaded, in a quarter of the time
        of an audit."""
        compiling = {r.job.programs for r in self.running} - self.compiled
        apart = [job for job in ready if job.programs not in compiling]
        return max(apart or ready, key=lambda job: (-job.rank, _needed(job, waiting)), default=None)

    def forecast(self, jobs: Sequence[Job]) -> str:
        """How long these will take, before anything is known of this machine."""
        minutes = Forecast(jobs, len(self.cores)).look(set(), [])[1] / 60
        return f"about {max(minutes, 1):.0f} minutes on {len(self.cores)} cores like those of the forecast"

    def is_done(self, job: Job) -> bool:
        return self._held(job) == job.key and job.made.exists()

    def _mark(self, job: Job) -> Path:
        return self.workdir / "jobs" / f"{_slug(job.name)}.json"

    def _held(self, job: Job) -> str | None:
        """The key under which what exists was made or begun."""
        try:
            held = read_object(self._mark(job))
        except (FileNotFoundError, JsonError):          # never begun, or damaged
            return None
        return held.get("key") if held.get("done") is True else f"begun {held.get('key')}"

    def _write(self, job: Job, **fields) -> None:
        path = self._mark(job)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps({"key": job.key, **fields}) + "\n")
        temporary.replace(path)

    def _start(self, job: Job, core: int) -> None:
        held = self._held(job)
        if held is None and job.made.exists():
            raise JobFailed(f"{job.made}: exists, and no run of this study made it; move it away")
        if held not in (None, f"begun {job.key}"):      # made of something else
            # The output and what an unfinished run of its program leaves beside it.
            for path in (job.made.with_name(job.made.name + ending) for ending in ("", ".parts", ".incomplete")):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self._write(job, done=False)
        worker = self._worker(core, self._log(job))
        worker.run(job.command, self._log(job))
        self.running.append(_Running(job, worker, time.monotonic()))

    def _log(self, job: Job) -> Path:
        return self.workdir / "logs" / f"{_slug(job.name)}.log"

    def _worker(self, core: int, log: Path) -> Worker:
        """The core's process, or a new one."""
        for worker in [w for w in self.idle if w.core == core]:
            self.idle.remove(worker)
            if worker.alive:
                return worker
            worker.wait()
        return Worker(core, ROOT, self._environment(), log)

    def _settle(self, done: set[str], forecast: "Forecast", waiting: list[Job]) -> None:
        ended, _, _ = select.select([r.worker.process.stdout for r in self.running], [], [], 0)
        for each in [r for r in self.running if r.worker.process.stdout in ended]:
            end = each.worker.result()
            self.running.remove(each)
            self.idle.append(each.worker)
            if end.memory > MEMORY:
                self._end([self.idle.pop()])
            if end.status:
                log = self._log(each.job)
                said = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-SHOWN:]
                failure = JobFailed(f"{each.job.name} ended with status {end.status}; {log} ends:\n" + "\n".join(said))
                if not self._ended(each.job, failure):
                    raise failure
                self._drop(each.job.name, waiting)
                continue
            seconds = time.monotonic() - each.began
            self._write(each.job, done=True, seconds=round(seconds, 1), processor_seconds=round(end.processor, 1))
            done.add(each.job.name)
            self.compiled.add(each.job.programs)
            forecast.learn(each.job, seconds)
            self._ended(each.job, None)

    def _drop(self, name: str, waiting: list[Job]) -> None:
        """Takes what needs a job out of those that wait, and what needs that."""
        for job in [job for job in waiting if name in job.after]:
            if job in waiting:
                waiting.remove(job)
            self._drop(job.name, waiting)

    def seconds(self, job: Job) -> dict[str, float]:
        """What a finished job took: elapsed, and of a processor."""
        held = read_object(self._mark(job))
        return {"elapsed": held["seconds"], "processor": held["processor_seconds"]}

    def _environment(self) -> dict[str, str]:
        """One thread a process: two processes of one thread each do more than one of two. What one has compiled, the
        other one loads, from the folder that JAX was given or the study's own."""
        flags = os.environ.get("XLA_FLAGS", "")
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(self.workdir / "compiled")
        if "://" not in compiled:       # workers run in another folder
            compiled = os.path.abspath(compiled)
        return {
            **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip(),
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **KEPT_MEMORY,
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip

    @staticmethod
    def _end(workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()


class Forecast:
    """What is left, in seconds: expected seconds of every job, scaled by how long finished ones took."""

    def __init__(self, jobs: Sequence[Job], cores: int):
        self.jobs, self.cores = tuple(jobs), cores
        self.expected, self.taken = BELIEVED, BELIEVED

    def learn(self, job: Job, seconds: float) -> None:
        self.expected += job.seconds
        self.taken += seconds

    def look(self, done: set[str], running: Sequence[_Running]) -> tuple[float, float]:
        """(share done, seconds left)"""
        scale = self.taken / self.expected
        begun = {r.job.name: self._share(r, scale) for r in running}
        left = {job.name: job.seconds * (1 - begun.get(job.name, 0.0)) for job in self.jobs if job.name not in done}
        longest = max((_chain(job, self.jobs, left) for job in self.jobs if job.name in left), default=0.0)
        total = sum(job.seconds for job in self.jobs)
        return 1 - sum(left.values()) / total, scale * max(sum(left.values()) / self.cores, longest)

    def _share(self, r: _Running, scale: float) -> float:
        """A training run's steps say how far it is; of other programs only the time is known."""
        if r.job.steps and r.job.steps[1]:
            path, steps = r.job.steps
            numbers = re.findall(rb'"step": (\d+)', path.read_bytes()) if path.exists() else []
            return int(numbers[-1]) / steps if numbers else 0.0
        return min((time.monotonic() - r.began) / (scale * r.job.seconds), 0.95)


def _needed(job: Job, waiting: Sequence[Job]) -> float:
    """Seconds of the longest chain of jobs that begins with this one."""
    return job.seconds + max((_needed(other, waiting) for other in waiting if job.name in other.after), default=0.0)


def _chain(job: Job, jobs: Sequence[Job], left: dict[str, float]) -> float:
    """Seconds left of the longest chain that ends with this job."""
    before = [_chain(other, jobs, left) for other in jobs if other.name in job.after and other.name in left]
    return left[job.name] + max(before, default=0.0)


def _cores(count: int) -> list[int]:
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return allowed[:count] if count else allowed


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")
