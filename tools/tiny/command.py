"""What the programs that make the shipped checkpoints have in common on the command line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from absl import logging

from lvr_jax.checkpoints import CheckpointError
from lvr_jax.training.loop import TrainingFailed


def parser(description: str | None, *, drawn: str) -> argparse.ArgumentParser:
    """The options of all of them. drawn: what the experiments draw with seed 0."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--workdir", type=Path, required=True, help="folder for what is made on the way")
    found.add_argument("--output", type=Path, required=True, help="the Hugging Face folder to write")
    found.add_argument("--warm-up-steps", type=int, default=900, metavar="N")
    found.add_argument("--steps", type=int, metavar="N", help="of each training on questions (default: its config's)")
    found.add_argument("--seed", type=int, default=1, help=f"the experiments draw their {drawn} with seed 0")
    return found


def run(
    parser: argparse.ArgumentParser, arguments: list[str] | None, name: str, make: Callable[[argparse.Namespace], None]
) -> int:
    """Makes what the arguments say; the exit status: 0 done, 1 failed, 2 bad input."""
    options = parser.parse_args(arguments)
    for field in ("warm_up_steps", "steps"):
        steps = getattr(options, field)
        if steps is not None and steps < 1:
            parser.error(f"--{field.replace('_', '-')} is {steps}, expected at least 1")
    logging.set_verbosity(logging.WARNING)
    try:
        make(options)
    except CheckpointError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, OSError, TrainingFailed) as error:
        print(f"{name}: {error or 'stopped; the same command goes on from here'}", file=sys.stderr)
        return 1
    print(options.output)
    return 0
