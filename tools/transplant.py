"""Feeds checkpoints each other's latents, swaps parts of their weights, and measures how far training moved them.

    python tools/transplant.py --config configs/transplant.py --config.checkpoint=markers,lambda_0,lvr \\
        --config.base=qwen_3b --config.benchmark=vstar --config.folder=data/vstar --workdir runs/shared

Checkpoints are folders of one network and latent system, Orbax or Hugging Face. Every network is scored clean, blind to
its latents, without them, and with latents of others. The result is WORKDIR/shared.json; the same command goes on where
it was stopped.

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import sys
from pathlib import Path

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # heeded at once to the end: whatever is written is written whole
    start_program("transplant")

from absl import app, flags, logging
from ml_collections import config_flags

from lvr_jax.command.arguments import parser
from lvr_jax.files.lock import locked
from lvr_jax.prism import shared
from lvr_jax.prism.experiment import BAD_INPUT, PrismError
from lvr_jax.training.compilation import use_compilation_cache

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file (default: configs/transplant.py).",
                                         lock_config=True)  # fmt: skip
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is made (local or gs://).")
PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.ERROR)
    try:
        if len(arguments) > 1:
            raise PrismError(f"argument {arguments[1]!r}: not expected (see --help)")
        if not WORKDIR.value:
            raise PrismError("--workdir: missing, expected a folder for the results")
        with locked(WORKDIR.value):
            use_compilation_cache("auto", WORKDIR.value)
            shared.run(CONFIG.value, WORKDIR.value, progress=PROGRESS.value,
                       say=lambda text: print(f"transplant: {text}", file=sys.stderr, flush=True))  # fmt: skip
    except BAD_INPUT as error:
        return _end(error, 2)
    except OSError as error:
        return _end(error, 1)
    print(Path(WORKDIR.value) / "shared.json")
    return 0


def _end(error: object, status: int) -> int:
    print(f"transplant: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    app.run(lambda arguments: sys.exit(main(arguments)),
            flags_parser=parser("transplant", CONFIG, default="transplant"))  # fmt: skip
