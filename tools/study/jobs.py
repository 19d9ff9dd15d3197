"""Lists the programs that make up the study, and what each of them needs first: commands that a person would type."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs.prism import LIGHT
from lvr_jax.files.shipped import CONFIGS, TOOLS
from lvr_jax.prism.experiment import names
from study.runs import SETTINGS, TEXT_ONLY, Run, runs

# What settings are compared by, besides the conditions of a light audit.
COMPARED = "donor,norm_matched"
STAGES = ("convert", "train", "evaluate", "audit")

@dataclasses.dataclass(frozen=True)
class Job:
    """One command, a program and its arguments. after: names of jobs that come first; made: folders or files of its
    own; seconds: expected, of one core; key: of all that the result depends on; steps: (metrics file, how many) of a
    training run; programs: jobs with the same text compile the same programs, or nearly."""

    name: str
    stage: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    made: Path
    seconds: float
    key: str
    steps: tuple[Path, int] | None = None
    programs: str = ""


def jobs(config: ConfigDict, workdir: Path) -> list[Job]:
    """All jobs, each after those that it needs."""
    return list(_Study(config, workdir).jobs())


class _Study:
    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        # The study's own config reaches jobs through their commands alone.
        self.rules = _content([CONFIGS], ("reproduce.py",))
        self.keys: dict[str, str] = {}

    def jobs(self) -> Iterator[Job]:
        every = runs(self.config, self.workdir)
        for base in dict.fromkeys(run.base for run in every):
            made = self._converted(base)
            command = ["convert.py", "to-flax", base, made, "--overwrite"]
            yield self._job(_conversion(base), "convert", command, (), made, 0, content=_content([base]))
        for run in every:
            yield self._training(run)
            yield self._evaluation(run)
            if run.config not in TEXT_ONLY:
                yield self._audit(run)

    def _converted(self, base: Path) -> Path:
        return self.workdir / "bases" / base.name

    def _training(self, run: Run) -> Job:
        c = self.config
        settings = {
            "init.checkpoint": self._converted(run.base), "seed": run.seed,
            "steps": c.train.steps * SETTINGS[run.setting].longer,
            "rows": c.train.rows, "held_out.every": 0, "log.progress": False, "log.tensorboard": False, **run.fields(),
        }  # fmt: skip
        if run.config == "base":
            settings["steps"] = 0
        steps = settings["steps"]
        # Five checkpoints a run, so that D-LVR can fork the baseline at three fifths.
        settings["checkpoint.every"] = max(steps // 5, 1)
        after = [_conversion(run.base)]
        if run.config == "d_lvr":
            parent = dataclasses.replace(run, config="lvr")
            settings["init.fork_from"] = parent.folder / "train"
            after.append(f"train {parent.name}")
            if after[-1] not in self.keys:
                raise ValueError(
                    f"runs.{run.setting} names {run.variant!r} before {parent.variant!r}, expected {parent.variant} "
                    "first: it is forked from it"
                )
        place = run.folder / "train"
        command = ["train.py", "--config", f"configs/{run.config}.py:tiny", "--workdir", place, *_flags(settings)]
        share = 0.4 if run.config == "d_lvr" else 1.0
        seconds = steps * c.seconds.step * share + (c.seconds.compile if steps else 0)
        return self._job(
            f"train {run.name}", "train", command, after, place, seconds, (place / "metrics.jsonl", steps),
            programs=f"train {run.config}"
        )  # fmt: skip

    def _evaluation(self, run: Run) -> Job:
        c, output = self.config, run.folder / "digit_search.jsonl"
        command = [
            "evaluate.py", "--checkpoint", run.checkpoint, "--benchmark", "digit_search", "--batch", 50, "--budget",
            c.budget, "--output", output, "--protocol.max_new_tokens=48",
            *(f"--benchmark.{name}={value}" for name, value in {"size": c.questions, **run.scenes}.items()),
        ]  # fmt: skip
        if run.config in TEXT_ONLY:
            command += ["--system", "none"]
        return self._job(f"evaluate {run.name}", "evaluate", command, [f"train {run.name}"], output, c.seconds.evaluate,
                         programs=f"evaluate {run.system}")  # fmt: skip

    def _audit(self, run: Run) -> Job:
        place = run.folder / "audit"
        light = is_light(self.config, run)
        command = ["prism.py", "--config", "configs/prism.py" + (":light" if light else ""), "--workdir", place,
                   "--noprogress", *_flags(prism_settings(self.config, run))]  # fmt: skip
        seconds = self.config.seconds.light if light else self.config.seconds.audit
        programs = f"{'light' if light else 'full'} audit {run.system}"
        return self._job(
            f"audit {run.name}", "audit", command, [f"train {run.name}"], place, seconds, programs=programs
        )

    def _job(self, name, stage, command, after, made, seconds, steps=None, content="", programs="") -> Job:
        """content: a digest of what the command reads besides configs and what earlier jobs made."""
        program, *arguments = map(str, command)
        text = [program, *(a.replace(str(self.workdir), "WORKDIR") for a in arguments)]
        known = [self.rules, content, text, [self.keys[each] for each in after]]
        self.keys[name] = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        full = (str(TOOLS / program), *arguments)
        return Job(name, stage, full, tuple(after), made, seconds + self.config.seconds.start, self.keys[name], steps,
                   programs)  # fmt: skip


def _conversion(base: Path) -> str:
    return f"convert {base.name}"


def is_light(config: ConfigDict, run: Run) -> bool:
    """Whether its audit is `configs/prism.py:light`."""
    return run.setting in names(config.light)


def prism_settings(config: ConfigDict, run: Run) -> dict:
    """What differs from configs/prism.py, or from `configs/prism.py:light`."""
    if unknown := set(names(config.light)) - set(SETTINGS):
        raise ValueError(f"light has {sorted(unknown)[0]!r}, expected some of {', '.join(SETTINGS)}")
    own = {"conditions.names": f"{LIGHT},{COMPARED}"} if is_light(config, run) else {
        "conditions.sigmas": tuple(config.sigmas), "conditions.per_latent": "step_mean"
    }  # fmt: skip
    scenes = ", ".join(f"{name}={value!r}" for name, value in {"size": config.audited, **run.scenes}.items())
    return {
        "checkpoint": run.checkpoint, "names": run.name, "benchmark": "digit_search", "options": scenes,
        "switches": "max_new_tokens=48", "budget": config.budget, "rows": 50, "programs": 1,
        "alignment.latents": 16, "alignment.count": config.audited, "draws": config.draws, "gallery": 2,
        "report": False, **own,
    }  # fmt: skip


def _flags(settings: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def _content(folders: list[Path], without: Sequence[str] = ()) -> str:
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            if path.name in without:
                continue
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
