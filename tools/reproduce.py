"""The paper in miniature, on a laptop, nothing to download: convert, train, evaluate, audit, report.

    python tools/reproduce.py --workdir runs/reproduce
    python tools/reproduce.py --workdir runs/three_seeds --config.seeds="(0, 1, 2)"
    python tools/reproduce.py --workdir runs/reproduce --config.only=audit,report
    python tools/reproduce.py --config configs/full_study.py --workdir runs/full_study

From the tiny checkpoint that ships with the project: the paper's five variants, baselines, and the two controls that
the paper lacks (configs/reproduce.py says which). What is done is kept: the same command goes on where it was stopped,
and after a change does again only what depends on it. The result is WORKDIR/report/report.html, one file.

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import os
import sys
import time
from pathlib import Path

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("reproduce")

# The report is written here; the work itself is done by processes that choose for themselves.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
from absl import app, flags, logging
from ml_collections import config_flags

from lvr_jax.command.arguments import parser
from lvr_jax.files.lock import locked
from lvr_jax.multihost.hosts import Stopped, StopSignal
from lvr_jax.prism.experiment import BAD_INPUT
from study import jobs as study
from study.blocks import Blocks
from study.page.report import write as write_page
from study.summary import headline, write_report
from study.workers import JobFailed, Workers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file (default: configs/reproduce.py).",
                                         lock_config=True)  # fmt: skip
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is made.")
PROGRESS = flags.DEFINE_bool("progress", True, "Show what is going on, and for how long yet.")


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.ERROR)
    stop = StopSignal()
    try:
        if len(arguments) > 1:
            raise ValueError(f"argument {arguments[1]!r}: not expected (see --help)")
        if not WORKDIR.value:
            raise ValueError("--workdir: missing, expected a folder for the results")
        with locked(WORKDIR.value):
            reproduce(CONFIG.value, Path(WORKDIR.value).absolute(), stop)
    except (*BAD_INPUT, ValueError) as error:
        return _end(error, 2)
    except (JobFailed, Stopped, OSError) as error:
        return _end(error, 1)
    return 0


def reproduce(config, workdir: Path, stop: StopSignal) -> None:
    """Runs the stages of the study that the config asks for."""
    wanted = {stage.strip() for stage in config.only.split(",") if stage.strip()} or {*study.STAGES, "report"}
    if unknown := wanted - {*study.STAGES, "report"}:
        raise ValueError(f"only has {sorted(unknown)[0]!r}, expected some of {', '.join(study.STAGES)}, report")
    if config.workers < 0:
        raise ValueError(f"workers is {config.workers}, expected 0 (one a core) or more")
    began = time.monotonic()
    blocks = Blocks(config, workdir) if "blocks" in config else None
    every = study.jobs(config, workdir, blocks.finished() if blocks else ())
    workers = Workers(workdir, config.workers)
    todo = [job for job in every if job.stage in wanted]
    missing = [job for job in todo if not workers.is_done(job)]
    made = {job.name for job in todo} | {job.name for job in every if workers.is_done(job)}
    for job in missing:
        if lacking := set(job.after) - made:
            raise ValueError(f"only={config.only}: {job.name} needs {sorted(lacking)[0]!r}, which is not done")
    if missing:
        say(f"{len(todo) - len(missing)} of {len(todo)} jobs are done already; {workers.forecast(missing)}")
    else:
        say("nothing to train or measure")
    if blocks:
        blocks.run(todo, every, workers, PROGRESS.value, stop)
    else:
        workers.run(todo, PROGRESS.value, stop=stop)
    if "report" in wanted:
        say("report")
        stop.check()
        page, table = (write_page(blocks), blocks.table()) if blocks else write_report(config, workdir, stop.check)
        print(headline(table))
        print(f"{page}  ({(time.monotonic() - began) / 60:.1f} minutes)")


def say(line: str) -> None:
    """Prints a line of progress."""
    print(f"reproduce: {line}", file=sys.stderr, flush=True)


def _end(error: object, status: int) -> int:
    print(f"reproduce: {str(error).strip()}", file=sys.stderr)
    return status


if __name__ == "__main__":
    app.run(lambda arguments: sys.exit(main(arguments)), flags_parser=parser("reproduce", CONFIG, default="reproduce"))
