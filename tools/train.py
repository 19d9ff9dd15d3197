"""Trains one experiment: a variant of the paper, a control, or one of your own.

    python tools/train.py --config configs/lvr.py:tiny --workdir runs/lvr_tiny
    python tools/train.py --config configs/lvr.py:3b --workdir gs://bucket/lvr --config.init.checkpoint=Qwen2.5-VL-3B

Any field is an override, such as --config.steps=1000 or --config.mesh.tensor=4. The same command goes on where a
stopped run was: SIGTERM, Ctrl-C and a TPU's preemption notice save first. On a pod, start it on every host; by hand,
set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The workdir gets metrics.jsonl, tensorboard/,
checkpoints/ and, at the end, export/: a checkpoint for the other tools.

Exit status: 0 finished; 1 failed (a loss that is not finite, a full disk); 2 bad input; 143 stopped by SIGTERM or a
preemption's notice before the last step, and saved (130 by Ctrl-C). What ends one host of several ends all of them.
"""

import sys
import traceback
from pathlib import Path

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("train", lambda number: 128 + number)

from absl import app, flags, logging
from ml_collections import config_flags

from lvr_jax.command.arguments import parser

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and size: configs/lvr.py:3b.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://.")


def main(arguments: list[str]) -> int:
    # Imported late: --help needs no device, and several processes have to find each other before JAX finds any.
    from lvr_jax.checkpoints import CheckpointError
    from lvr_jax.data.sample import DataError
    from lvr_jax.files.lock import locked
    from lvr_jax.latents.spec import SpecError
    from lvr_jax.models.attention import AttentionError
    from lvr_jax.models.interface import ConfigError
    from lvr_jax.multihost.hosts import ALONE, Hosts, HostsError, MissingHost
    from lvr_jax.training.agreement import agree
    from lvr_jax.training.config_fields import ConfigFieldError
    from lvr_jax.training.distributed import DistributedError, initialize
    from lvr_jax.training.loop import TrainingFailed, train
    from lvr_jax.training.partitioning import MeshError

    bad_input = (
        AttentionError, CheckpointError, ConfigError, ConfigFieldError, DataError, DistributedError, HostsError,
        MeshError, SpecError,
    )  # fmt: skip
    logging.set_verbosity(logging.WARNING)
    hosts = ALONE
    try:
        if arguments[1:]:
            raise ConfigFieldError(f"argument {arguments[1]!r} is not a flag; see --help")
        if CONFIG.value is None or not WORKDIR.value:
            raise ConfigFieldError("expected --config FILE[:SIZE] and --workdir FOLDER; see --help")
        initialize()
        hosts = Hosts.here("train", signals=False)
        agree(hosts, CONFIG.value, WORKDIR.value)
        with locked(WORKDIR.value, hosts.first):
            outcome = train(CONFIG.value, WORKDIR.value)
            hosts.finish()
    except bad_input as error:
        return hosts.leave(2, f"train: {error}")
    except (TrainingFailed, MissingHost, OSError) as error:
        return hosts.leave(1, f"train: {error}")
    except Exception as error:          # a fault of the program: the other hosts must not wait for this one
        if hosts.count == 1:
            raise
        traceback.print_exc()
        return hosts.leave(1, f"train: {type(error).__name__}: {error}")
    said = "finished" if outcome.finished else "stopped and saved"
    print(f"{WORKDIR.value}: {said} at step {outcome.step} of {CONFIG.value.steps}")
    return 0 if outcome.finished else 128 + outcome.signal


if __name__ == "__main__":
    app.run(main, flags_parser=parser("train", CONFIG))
