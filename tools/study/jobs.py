"""Which programs make up the study, and what does each of them need first? The very commands a person would type."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("convert", "train", "evaluate", "audit")
# Runs without latents: there is nothing to audit.
TEXT_ONLY = ("base", "sft")
# What a setting asks of the scenes that are scored.
SCENES = {"masked": {"mask_box": True}}


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained checkpoint. config: name of a file in configs/; folder: what belongs to it."""

    setting: str
    config: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" if self.seed else self.variant

    @property
    def variant(self) -> str:
        """What runs with other seeds share."""
        return self.config if self.setting == "plain" else f"{self.setting}: lvr"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "train" / "export"

    @property
    def scenes(self) -> dict:
        return {"split": "test", **SCENES.get(self.setting, {})}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command. after: names of jobs that come first; made: folders or files of its own; seconds: expected, of one
    core; key: of all that the result depends on; steps: (metrics file, how many) of a training run."""

    name: str
    stage: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    made: Path
    seconds: float
    key: str
    steps: tuple[Path, int] | None = None


def runs(config: ConfigDict, workdir: Path) -> list[Run]:
    if unknown := set(config.runs) - {"plain", "bottleneck", "masked"}:
        raise ValueError(f"runs.{sorted(unknown)[0]}: no such setting, expected plain, bottleneck or masked")
    found = []
    for seed in config.seeds:
        for setting in ("plain", "bottleneck", "masked"):
            for name in filter(None, (part.strip() for part in config.runs.get(setting, "").split(","))):
                if not (ROOT / "configs" / f"{name}.py").exists():
                    raise ValueError(f"runs.{setting} names {name!r}: there is no configs/{name}.py")
                folder = workdir / "runs" / (name if not seed else f"{name}-{seed}")
                if folder in {run.folder for run in found}:
                    raise ValueError(f"{name!r} with seed {seed} is asked for twice, see seeds and runs.{setting}")
                found.append(Run(setting, name, int(seed), folder))
    if not found:
        raise ValueError("seeds and runs name nothing to train, expected at least one seed and one run")
    return found


def jobs(config: ConfigDict, workdir: Path) -> list[Job]:
    """All jobs, each after those that it needs."""
    return list(_Study(config, workdir).jobs())


class _Study:
    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.base = workdir / "base"
        self.rules = _content([ROOT / "configs", ROOT / config.checkpoint])
        self.keys: dict[str, str] = {}

    def jobs(self) -> Iterator[Job]:
        c = self.config
        convert = ["convert.py", "to-flax", ROOT / c.checkpoint, self.base, "--overwrite"]
        yield self._job("convert", "convert", convert, (), self.base, 0)
        for run in runs(c, self.workdir):
            yield self._training(run)
            yield self._evaluation(run)
            if run.config not in TEXT_ONLY:
                yield self._audit(run)

    def _training(self, run: Run) -> Job:
        c = self.config
        # Five checkpoints a run, so that D-LVR can fork the baseline at three fifths.
        steps = 0 if run.config == "base" else c.train.steps
        settings = {
            "init.checkpoint": self.base, "seed": run.seed, "steps": steps,
            "rows": c.train.rows,
            "checkpoint.every": max(steps // 5, 1), "held_out.every": 0, "log.progress": False,
            "log.tensorboard": False, "compilation_cache": self.workdir / "compiled",
        }  # fmt: skip
        after = ["convert"]
        if run.config == "d_lvr":
            folder = run.folder.with_name(run.folder.name.removeprefix("d_"))
            parent = dataclasses.replace(run, config="lvr", folder=folder)
            settings["init.fork_from"] = parent.folder / "train"
            after.append(f"train {parent.name}")
            if after[-1] not in self.keys:
                raise ValueError(f"runs.{run.setting} names d_lvr before lvr, expected lvr first: it is forked from it")
        place = run.folder / "train"
        command = ["train.py", "--config", f"configs/{run.config}.py:tiny", "--workdir", place, *_flags(settings)]
        share = 0.4 if run.config == "d_lvr" else 1.0
        seconds = steps * c.seconds.step * share
        return self._job(
            f"train {run.name}", "train", command, after, place, seconds, (place / "metrics.jsonl", steps)
        )

    def _evaluation(self, run: Run) -> Job:
        c, output = self.config, run.folder / "digit_search.jsonl"
        command = [
            "evaluate.py", "--checkpoint", run.checkpoint, "--benchmark", "digit_search", "--batch", 50, "--budget",
            c.budget, "--output", output, "--protocol.max_new_tokens=48",
            *(f"--benchmark.{name}={value}" for name, value in {"size": c.questions, **run.scenes}.items()),
        ]  # fmt: skip
        if run.config in TEXT_ONLY:
            command += ["--system", "none"]
        return self._job(f"evaluate {run.name}", "evaluate", command, [f"train {run.name}"], output, c.seconds.evaluate)

    def _audit(self, run: Run) -> Job:
        place = run.folder / "audit"
        command = ["prism.py", "--config", "configs/prism.py", "--workdir", place, "--noprogress",
                   *_flags(prism_settings(self.config, run))]  # fmt: skip
        return self._job(
            f"audit {run.name}", "audit", command, [f"train {run.name}"], place, self.config.seconds.audit
        )

    def _job(self, name, stage, command, after, made, seconds, steps=None) -> Job:
        program, *arguments = map(str, command)
        text = [program, *(a.replace(str(self.workdir), "WORKDIR") for a in arguments)]
        known = [self.rules, text, [self.keys[each] for each in after]]
        self.keys[name] = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        full = (sys.executable, str(ROOT / "tools" / program), *arguments)
        return Job(name, stage, full, tuple(after), made, seconds + self.config.seconds.start, self.keys[name], steps)


def prism_settings(config: ConfigDict, run: Run) -> dict:
    """What differs from configs/prism.py."""
    scenes = ", ".join(f"{name}={value!r}" for name, value in {"size": config.audited, **run.scenes}.items())
    return {
        "checkpoint": run.checkpoint, "names": run.name, "benchmark": "digit_search", "options": scenes,
        "switches": "max_new_tokens=48", "budget": config.budget, "rows": 50, "programs": 1,
        "conditions.sigmas": tuple(config.sigmas), "conditions.per_latent": "step_mean", "alignment.latents": 16,
        "alignment.count": config.audited, "draws": config.draws, "gallery": 2, "report": False,
    }  # fmt: skip


def _flags(settings: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def _content(folders: list[Path]) -> str:
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
