"""Lists the programs that make up the study, and what each of them needs first: commands that a person would type."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from configs import prism as prism_config
from configs.prism import LIGHT
from lvr_jax.files.shipped import ROOT, TOOLS
from lvr_jax.prism.experiment import names
from study.content import digest, experiment, folder_digest, read_of
from study.runs import SETTINGS, TEXT_ONLY, Run, everywhere, runs, shared_optimizer, tiny_of

# What settings are compared by, besides the conditions of a light audit.
COMPARED = "donor,norm_matched"
STAGES = ("convert", "train", "evaluate", "audit")
# Settings of an audit that say how it is done or shown: its numbers are the same with others.
HANDLING = ("checkpoint", "names", "rows", "programs", "draws", "gallery", "report")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, a program and its arguments. after: names of jobs that come first; made: folders or files of its
    own; seconds: expected, of one core; key: of all that the result depends on; steps: (metrics file, how many) of a
    training run; programs: jobs with the same text compile the same programs, or nearly; run: name of the run that it
    is done for; rank: jobs of a lower one come first."""

    name: str
    stage: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    made: Path
    seconds: float
    key: str
    steps: tuple[Path, int] | None = None
    programs: str = ""
    run: str = ""
    rank: int = 0


def jobs(config: ConfigDict, workdir: Path, without: Collection[str] = ()) -> list[Job]:
    """All jobs, each after those that it needs. without: names of runs that nothing is to be done for."""
    return list(_Study(config, workdir, without).jobs())


class _Study:
    def __init__(self, config: ConfigDict, workdir: Path, without: Collection[str]):
        self.config, self.workdir = config, workdir
        every = runs(config, workdir)
        # A state of a run needs the run, whatever is known of the run itself.
        needed = {run.whole.name for run in every if run.name not in without}
        self.asked = [run for run in every if run.name not in without]
        self.runs = [run for run in every if run.name not in without or run.name in needed]
        self.keys: dict[str, str] = {}

    def jobs(self) -> Iterator[Job]:
        for base in dict.fromkeys(run.base for run in self.runs):
            made = self._converted(base)
            command = ["convert.py", "to-flax", base, made, "--overwrite"]
            yield self._job(_conversion(base), "convert", command, (), made, 0, content=folder_digest(base))
        asked = {run.name for run in self.asked}
        for rank, run in enumerate(self.runs):
            own = [self._training(run)]
            if run.name in asked:
                own.append(self._evaluation(run))
                if run.config not in TEXT_ONLY:
                    own.append(self._audit(run))
            # Blocks are to be whole one after another; elsewhere what takes longest comes first.
            rank = rank if "blocks" in self.config else 0
            yield from (dataclasses.replace(job, run=run.name, rank=rank) for job in own)

    def _converted(self, base: Path) -> Path:
        return self.workdir / "bases" / base.name

    def _training(self, run: Run) -> Job:
        c, settings = self.config, training_settings(self.config, run)
        read = read_of(experiment(run, settings))
        place = {"init.checkpoint": self._converted(run.base)}
        after, steps, left = [_conversion(run.base)], settings["steps"], settings["steps"]
        forked = run.config == "d_lvr" and c.get("fork", True)
        if run.at is not None or forked:
            parent = run.whole if run.at is not None else dataclasses.replace(run, config="lvr")
            place["init.fork_from"] = parent.folder / "train"
            after.append(f"train {parent.name}")
            if after[-1] not in self.keys:
                where = f"blocks.{run.blocks[0]}" if run.blocks else f"runs.{run.setting}"
                raise ValueError(
                    f"{where} names {run.variant!r} before {parent.variant!r}, expected {parent.variant} "
                    "first: it is forked from it"
                )
            # A state is its run's checkpoint of that step, exported: a fork without a step of its own.
            left = 0.4 * steps if run.at is None else 0
        folder = run.folder / "train"
        flags = _flags({**place, **settings, **({} if run.at is None else {"steps": run.at, "init.fork_at": 1.0})})
        command = ["train.py", "--config", f"configs/{run.config}.py:tiny", "--workdir", folder, *flags]
        seconds = left * c.seconds.step + (c.seconds.compile if left else 0)
        return self._job(
            f"train {run.name}", "train", command, after, folder, seconds,
            (folder / "metrics.jsonl", steps) if run.at is None else None, read, f"train {run.config}"
        )  # fmt: skip

    def _evaluation(self, run: Run) -> Job:
        c, output = self.config, run.scored_in
        command = [
            "evaluate.py", "--checkpoint", run.checkpoint, "--benchmark", run.benchmark, "--batch", 50, "--budget",
            budget(c, run), "--output", output, "--protocol.max_new_tokens=48",
            *(f"--benchmark.{name}={value}" for name, value in scored(c, run).items()),
        ]  # fmt: skip
        if run.config in TEXT_ONLY:
            command += ["--system", "none"]
        return self._job(f"evaluate {run.name}", "evaluate", command, [f"train {run.name}"], output, c.seconds.evaluate,
                         programs=f"evaluate {run.system}")  # fmt: skip

    def _audit(self, run: Run) -> Job:
        place = run.folder / "audit"
        light, settings = is_light(self.config, run), prism_settings(self.config, run)
        read = prism_config.get_config("light" if light else "").to_json_best_effort()
        command = ["prism.py", "--config", "configs/prism.py" + (":light" if light else ""), "--workdir", place,
                   "--noprogress", *_flags(settings)]  # fmt: skip
        seconds = self.config.seconds.light if light else self.config.seconds.audit
        programs = f"{'light' if light else 'full'} audit {run.system}"
        return self._job(
            f"audit {run.name}", "audit", command, [f"train {run.name}"], place, seconds, content=read,
            programs=programs,
        )  # fmt: skip

    def _job(self, name, stage, command, after, made, seconds, steps=None, content: object = "", programs="") -> Job:
        """content: what the command reads besides its arguments and what earlier jobs made."""
        program, *arguments = map(str, command)
        pinned = _flags(shared_optimizer(self.config))      # content has it, whoever says it
        text = [program, *(a.replace(str(self.workdir), "WORKDIR").replace(str(ROOT), "ROOT") for a in arguments
                           if a not in pinned)]  # fmt: skip
        self.keys[name] = digest([content, text, [self.keys[each] for each in after]])
        full = (str(TOOLS / program), *arguments)
        return Job(name, stage, full, tuple(after), made, seconds + self.config.seconds.start, self.keys[name], steps,
                   programs)  # fmt: skip


def training_settings(config: ConfigDict, run: Run) -> dict:
    """What differs from the run's config besides paths."""
    settings = {
        "seed": run.seed, **everywhere(config, run.setting), **run.pictures(config), "held_out.every": 0,
        "log.progress": False, "log.tensorboard": False, **run.fields(),
    }  # fmt: skip
    if run.config == "base":
        settings["steps"] = 0
    # Five checkpoints a run, so that D-LVR can fork the baseline at three fifths.
    settings["checkpoint.every"] = max(settings["steps"] // 5, 1)
    return settings


def scored(config: ConfigDict, run: Run) -> dict:
    """The questions that accuracy is of, as options of the benchmark."""
    return {"size": config.questions, **run.scenes}


def budget(config: ConfigDict, run: Run) -> int:
    """Latents a block: the study's, else those that the run was trained for."""
    return config.budget or tiny_of(run.config).system.budget


def result_key(config: ConfigDict, run: Run) -> str:
    """Of all that the run's result depends on, wherever and with whatever it is made."""
    audit = {name: value for name, value in prism_settings(config, run).items() if name not in HANDLING}
    return digest({
        "base": folder_digest(run.base), "training": read_of(experiment(run, training_settings(config, run))),
        "seed": run.seed, "at": run.at, "questions": scored(config, run), "budget": budget(config, run),
        "audit": None if run.config in TEXT_ONLY else audit, "light": is_light(config, run),
    })  # fmt: skip


def _conversion(base: Path) -> str:
    return f"convert {base.name}"


def is_light(config: ConfigDict, run: Run) -> bool:
    """Whether its audit is `configs/prism.py:light`."""
    return "blocks" in config or run.setting in names(config.light)


def light_conditions(config: ConfigDict) -> str:
    """Names of the conditions of a light audit, with commas between them."""
    return config.get("conditions", f"{LIGHT},{COMPARED}")


def prism_settings(config: ConfigDict, run: Run) -> dict:
    """What differs from configs/prism.py, or from `configs/prism.py:light`."""
    if unknown := set(names(config.get("light", ""))) - set(SETTINGS):
        raise ValueError(f"light has {sorted(unknown)[0]!r}, expected some of {', '.join(SETTINGS)}")
    own = {"conditions.names": light_conditions(config)} if is_light(config, run) else {
        "conditions.sigmas": tuple(config.sigmas), "conditions.per_latent": "step_mean"
    }  # fmt: skip
    scenes = ", ".join(f"{name}={value!r}" for name, value in {"size": config.audited, **run.scenes}.items())
    return {
        "checkpoint": run.checkpoint, "names": run.name, "benchmark": run.benchmark, "options": scenes,
        "switches": "max_new_tokens=48", "budget": budget(config, run), "rows": 50, "programs": 1,
        "alignment.latents": 16, "alignment.count": config.audited, "draws": config.draws, "gallery": 2,
        "report": False, **own,
    }  # fmt: skip


def _flags(settings: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]
