"""Disturbs programs at random moments: kill -9, SIGTERM, and the same command twice at once.

`PROGRAMS` is the table: what is run, and what of its place is its result. A result that is there is whole at every
moment, and at the end it is the undisturbed run's.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from forked import Process

ROOT = Path(__file__).parents[2]
TINY_LVR, TOKENIZER = "lvr_jax/assets/tiny_lvr", "tests/golden/tokenizer.json"
SOURCE, QUICK = "source", "quick"     # beside the outputs: TINY_LVR in our own layout, and a base of two layers
LONGEST = 600       # seconds, of a run on a busy machine
HEEDED = 60         # seconds from a stop signal to the end


@dataclasses.dataclass(frozen=True)
class Program:
    """command: arguments for an output; result: what is complete there, by name; stopped: exit status after SIGTERM;
    says: its line then; again: whether a command that has finished may be given once more; served: it runs until it is
    stopped, and its result is what it serves."""

    command: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, object]]
    stopped: int = 1
    says: str = r"{name}: stopped by SIGTERM; the same command goes on from here"
    again: bool = True
    served: bool = False


# Results --------------------------------------------------------------------------------------------------------------


def files(*patterns: str) -> Callable[[Path], dict[str, object]]:
    """Reads the files of an output that match."""
    def read(out: Path) -> dict[str, object]:
        found = (path for pattern in patterns for path in out.glob(pattern) if path.is_file())
        return {str(path.relative_to(out)): path.read_bytes() for path in found}

    return read


def flax(out: Path) -> dict[str, object]:
    """The arrays of a complete checkpoint of ours, and the files around them."""
    from lvr_jax.checkpoints import load
    from lvr_jax.checkpoints.orbax_io import flat

    if not (out / "lvr_jax.json").exists():
        return {}
    arrays = {path: _digest(np.asarray(x)) for path, x in flat(load(out)[1]).items()}
    return files("hf/*", "safetensors/*", "*.json")(out) | arrays


def training(out: Path) -> dict[str, object]:
    """The export; every checkpoint's arrays, parameters and optimizer; what each step computed."""
    import jax
    import orbax.checkpoint as ocp

    found = {f"export/{name}": held for name, held in flax(out / "export").items()}
    for state in out.glob("checkpoints/[0-9]*/state") if "export/lvr_jax.json" in found else ():
        tree = ocp.PyTreeCheckpointer().restore(state)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{state.parent.name}{jax.tree_util.keystr(path)}"] = _digest(np.asarray(leaf))
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found["metrics"] = [{k: v for k, v in row.items() if "second" not in k and "wait" not in k} for row in rows]
    return found


def _digest(array: np.ndarray) -> str:
    return f"{array.dtype}{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def page(out: Path) -> dict[str, object]:
    """What the playground serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{_port(out)}/config", timeout=30) as answer:
        return {"components": len(json.load(answer)["components"])}


# The table ------------------------------------------------------------------------------------------------------------


def _config(program: str, config: str, out: Path, **fields) -> list[str]:
    given = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return [program, "--config", f"configs/{config}", *given, "--workdir", str(out)]


def _evaluation(out: Path) -> list[str]:
    return ["evaluate", "--checkpoint", TINY_LVR, "--benchmark", "digit_search", "--benchmark.size=16", "--batch", "2",
            "--protocol.max_new_tokens=8", "--budget", "2", "--output", str(out / "results.jsonl")]  # fmt: skip


def _inspection(out: Path) -> list[str]:
    return ["inspect_data", "--config", "configs/data/digit_search.py:p_lvr_3", f"--config.data.tokenizer={TOKENIZER}",
            "--index", "0,1,2", "--output", str(out)]  # fmt: skip


def _port(out: Path) -> int:
    """A port for each place: a page that was stopped there can be served again under the same address."""
    return 20_000 + int(hashlib.sha256(str(out).encode()).hexdigest(), 16) % 10_000


PROGRAMS = {
    "train": Program(
        lambda out: _config(
            "train", "lvr.py:tiny", out, init__checkpoint=out.parent / QUICK, steps=6, rows=2,
            data__sources__digits__size=40, data__prefetch=0, data__lookahead=4, data__tokens=256, data__windows=2,
            data__max_per_row=2, held_out__every=0, checkpoint__every=1, log__every=1, log__progress=False,
            log__tensorboard=False),
        training, 143, r"train: stopped by SIGTERM; the same command goes on from here"
                       r"|\S+: stopped and saved at step \d+ of 6"),
    "evaluate": Program(_evaluation, files("*.jsonl")),
    "prism": Program(
        lambda out: _config(
            "prism", "prism.py:light", out, checkpoint=TINY_LVR, benchmark="digit_search", options="size=6, options=2",
            budget=2, rows=3, switches="max_new_tokens=8", draws=100, gallery=0, conditions__names="zero,donor",
            probes__controls=2, alignment__count=6),
        files("report/**/*.json", "report/**/*.csv", "report/*.html", "**/*.npz")),
    "convert to-flax": Program(
        lambda out: ["convert", "to-flax", TINY_LVR, str(out / "flax"), "--verify"],
        lambda out: flax(out / "flax"), says=r"convert: stopped by SIGTERM; nothing was kept", again=False),
    "convert to-hf": Program(
        lambda out: ["convert", "to-hf", str(out.parent / SOURCE), str(out / "hf"), "--verify"], files("hf/*"),
        says=r"convert: stopped by SIGTERM; nothing was kept", again=False),
    "inspect_data": Program(_inspection, files("*.png", "*.txt")),
    "reproduce": Program(
        lambda out: _config(
            "reproduce", "reproduce.py", out, checkpoint=out.parent / QUICK, train__steps=2, train__rows=2, questions=6,
            audited=6, draws=100, runs__plain="lvr", runs__controls="", runs__believed="", runs__bottleneck="",
            runs__masked="", light="plain", sigmas=1.0, workers=1),
        files("report/tables/*", "report/*.json")),
    "playground": Program(
        lambda out: ["playground", "--checkpoint", TINY_LVR, "--port", str(_port(out)), "--budget", "2",
                     "--max-new-tokens", "8"],
        page, 0, "playground: stopped", served=True),
}  # fmt: skip


# Disturbing -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """What happened to a program: moments that hit it, and runs that were disturbed and ended as an undisturbed one."""

    killed: int = 0
    stopped: int = 0
    too_early: int = 0      # of the stops: before the process heeded any signal
    finished: int = 0
    ended_first: int = 0
    refused: int = 0        # second runs that were told of the first
    length: float = 0.0     # seconds of an undisturbed run

    def line(self, name: str) -> str:
        return f"{name}: " + ", ".join(f"{v if isinstance(v, int) else round(v, 1)} {k}" for k, v in vars(self).items())


@dataclasses.dataclass
class Run:
    """One process, its streams in files beside its place."""

    name: str
    program: Program
    out: Path
    log: Path
    process: Process

    @property
    def said(self) -> str:
        return self.log.with_suffix(".err").read_text()

    @property
    def last(self) -> str:
        return self.said.splitlines()[-1]

    def ready(self) -> bool:
        """Whether it has ended, or serves."""
        return self.process.poll() is not None or self.program.served and self.log.read_text().startswith("http")

    def wait(self, seconds: float = LONGEST) -> bool:
        """Whether it got `ready` in this time."""
        deadline = time.monotonic() + seconds
        while not self.ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.ready()

    def end(self) -> int:
        """The status of a run that should come to its end; a page is looked at first."""
        assert self.wait(), f"{self.name} runs for more than {LONGEST} s"
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(HEEDED)


class Disturbed:
    """A program, disturbed in places of its own below a folder."""

    def __init__(self, name: str, folder: Path, seed: int):
        self.name, self.program, self.folder = name, PROGRAMS[name], folder
        self.draw, self.tally, self.count = random.Random(seed), Tally(), 0
        (folder / "tmp" / "lvr_jax_playground_notes").mkdir(parents=True)
        (folder / "tmp" / "lvr_jax_playground_notes" / "notes.txt").write_text("mine")
        self.out = self._place()
        began = time.monotonic()
        run = self.start()
        self.whole, run = self._completed(run), None
        self.tally.length = time.monotonic() - began
        assert self.whole
        self.out = self._place()

    def _place(self) -> Path:
        """A new output, with files of somebody else beside what is made."""
        self.count += 1
        out = self.folder / f"{self.count:03d}"
        for name in OTHERS:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("mine")
        return out

    def start(self, out: Path | None = None) -> Run:
        out = out or self.out
        name, *arguments = self.program.command(out)
        log = self.folder / f"{out.name}-{time.monotonic_ns()}.out"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder / "tmp")}
        streams = log, log.with_suffix(".err")
        for path in streams:
            path.touch()
        process = Process([ROOT / "tools" / f"{name}.py", *arguments], environment, ROOT, streams)
        return Run(name, self.program, out, log, process)

    def disturb(self, number: signal.Signals) -> None:
        """Runs the command, and sends the signal at a random moment; what comes to its end before is compared."""
        run, moment = self.start(), self.draw.uniform(0, self.tally.length)
        if run.wait(moment) and not self.program.served:
            self.tally.ended_first += 1
            self.tally.length = min(self.tally.length, moment)
            self.check_whole(run)
            return
        heeds = _heeds(run.process.pid, number)
        run.process.send_signal(number)
        status = run.process.wait(HEEDED)
        if number == signal.SIGKILL:
            self.tally.killed += 1
        else:
            self.tally.stopped += 1
            self.tally.too_early += not heeds
            self._check_stopped(run, status, heeds)
        self._check_others(run)
        there = {} if self.program.served else self.program.result(run.out)
        assert there.items() <= self.whole.items(), self._difference(run, there)
        if there == self.whole and not self.program.again or status == 0 and not self.program.served:
            self.check_whole(run)

    def finish(self) -> None:
        """The same command twice, a moment apart: one does it, the other is refused in a line or finds it done."""
        runs = [self.start()]
        runs[0].wait(self.draw.uniform(0, self.tally.length / 2))
        runs.append(self.start())
        if self.program.served:
            runs.sort(key=lambda run: not (run.wait() and run.process.poll() is None))
            held = self._completed(runs[0])
            assert runs[1].end() == 1 and re.match(r"playground: .*\bport\b", runs[1].last), runs[1].said
            self.tally.refused += 1
            assert held == self.whole
            self.tally.finished += 1
            self._check_others(runs[0])
            return
        statuses = [run.end() for run in runs]
        for run, status in zip(runs, statuses):
            if status:
                assert status in (1, 2) and re.match(rf"{run.name}: .*(another|exists)", run.last), run.said
                self.tally.refused += 1
        assert 0 in statuses, [run.said for run in runs]
        self.check_whole(runs[statuses.index(0)])

    def check_whole(self, run: Run) -> None:
        """The result is the undisturbed one's, nothing half-made is left, and the next run gets another place."""
        there = self.program.result(run.out)
        assert there == self.whole, self._difference(run, there)
        left = [str(path.relative_to(run.out)) for path in run.out.rglob("*") if _UNFINISHED.search(path.name)]
        assert not set(left) - set(OTHERS) - {str(Path(name).parent) for name in OTHERS}, f"left in {run.out}: {left}"
        self._check_others(run)
        assert "Traceback" not in run.said, run.said
        self.tally.finished += 1
        self.out = self._place()

    def _completed(self, run: Run) -> dict[str, object]:
        """The result of a run that nothing disturbs."""
        if self.program.served:
            assert run.wait() and run.process.poll() is None, run.said
            found = self.program.result(run.out)
            assert run.end() == 0, run.said
            return found
        assert run.end() == 0, run.said
        return self.program.result(run.out)

    def _check_stopped(self, run: Run, status: int, heeds: bool) -> None:
        """It says that it was stopped, unless it was at its end already, or not yet able to."""
        lines = [*run.said.splitlines(), *run.log.read_text().splitlines()]
        says = self.program.says.format(name=run.name)
        stopped = status == self.program.stopped and any(re.fullmatch(says, line) for line in lines)
        done = status in (0, -signal.SIGTERM) and not self.program.served and self.program.result(run.out) == self.whole
        assert stopped or done or not heeds and status == -signal.SIGTERM, f"status {status}\n{run.said}"
        assert "Traceback" not in run.said, run.said

    def _check_others(self, run: Run) -> None:
        paths = [run.out / name for name in OTHERS] + [self.folder / "tmp/lvr_jax_playground_notes/notes.txt"]
        assert all(path.read_text() == "mine" for path in paths)

    def _difference(self, run: Run, there: dict[str, object]) -> str:
        differ = [key for key in {**there, **self.whole} if there.get(key) != self.whole.get(key)]
        return f"{run.out}: of {len(self.whole)} parts of the result {len(differ)} differ or lack: {differ[:5]}"


# Of somebody else, under names like those of unfinished work.
OTHERS = ("notes.txt", "kept.incomplete/notes.txt", "kept.partial", "flax.replaced.mine/notes.txt")
_UNFINISHED = re.compile(r"\.incomplete$|\.replaced$|\.parts$|-unfinished$|tmp")


def _heeds(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    try:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


def survive(name: str, folder: Path, moments: int, seed: int) -> Tally:
    """Hits a program with so many kills and so many stops, then runs it to its end, twice at once."""
    disturbed = Disturbed(name, folder, seed)
    signals = [signal.SIGKILL, signal.SIGTERM] * moments
    disturbed.draw.shuffle(signals)
    hits = lambda: disturbed.tally.killed + disturbed.tally.stopped  # noqa: E731
    for number in signals:
        before, tries = hits(), 0
        while hits() == before and (tries := tries + 1) < 9:
            disturbed.disturb(number)
    assert hits() == len(signals), "the runs were over before they could be hit"
    disturbed.finish()
    shutil.rmtree(folder)
    return disturbed.tally
