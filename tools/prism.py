"""Audits latent-reasoning checkpoints: probes, corruption sweep, alignment, collapse, sensitivity, and a report.

    python tools/prism.py --config configs/prism.py --config.checkpoint=lvr_3b,n_lvr_3b \\
        --config.benchmark=vstar --config.folder=data/vstar --workdir runs/prism

    python tools/prism.py --config configs/prism.py --config.checkpoint=tiny --config.benchmark=digit_search \\
        --config.options="size=100, options=4" --config.conditions.sigmas=0.01,0.03,0.1,0.3,1,3,10 --workdir runs/tiny

Checkpoints are Hugging Face or Orbax folders of any latent system. Everything is kept in --workdir batch by batch: the
same command goes on where it was stopped, and does nothing twice. The result is WORKDIR/report/report.html (one file,
no network needed) with report.json, figures and tables beside it. On a pod every host gets the same command
(tools/launch_tpu.sh all) and a workdir that all of them see: they share the items, the first one writes the report.

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import sys
import traceback
from pathlib import Path

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("prism")

from absl import app, flags, logging
from ml_collections import config_flags

from lvr_jax.command.arguments import parser
from lvr_jax.files.lock import locked
from lvr_jax.multihost.hosts import ALONE, Hosts, MissingHost, Stopped
from lvr_jax.prism import experiment
from lvr_jax.training.compilation import use_compilation_cache
from lvr_jax.training.distributed import DistributedError, initialize

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/prism.py.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is made (local or gs://).")
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only analyse and report what has been run.")
PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.ERROR)            # Orbax warns of what is meant to be so
    hosts = ALONE
    try:
        if len(arguments) > 1:
            return hosts.leave(2, line(f"argument {arguments[1]!r}: not expected (see --help)"))
        if not WORKDIR.value:
            return hosts.leave(2, line("--workdir: missing, expected a folder for the results"))
        if CONFIG.value is None:
            return hosts.leave(2, line("--config: missing, expected a config file such as configs/prism.py"))
        initialize()
        hosts = Hosts.here("prism")
        say = lambda text: print(line(text), file=sys.stderr, flush=True) if hosts.first else None  # noqa: E731
        with locked(WORKDIR.value, hosts.first):
            use_compilation_cache("auto", WORKDIR.value)
            page = experiment.run(
                CONFIG.value, WORKDIR.value, progress=PROGRESS.value, say=say, hosts=hosts,
                report_only=REPORT_ONLY.value,
            )  # fmt: skip
            hosts.finish()
    except (*experiment.BAD_INPUT, DistributedError) as error:
        return hosts.leave(2, line(error))
    except (Stopped, MissingHost, OSError) as error:
        return hosts.leave(1, line(error))
    except Exception as error:                      # a fault of the program: the other hosts must not wait
        if hosts.count == 1:
            raise
        traceback.print_exc()
        return hosts.leave(1, line(f"{type(error).__name__}: {error}"))
    if hosts.first:
        print(page)
    return 0


def line(said: object) -> str:
    """A message of this program as one line."""
    return f"prism: {' '.join(str(said).split())}"


if __name__ == "__main__":
    app.run(lambda arguments: sys.exit(main(arguments)), flags_parser=parser("prism", CONFIG))
