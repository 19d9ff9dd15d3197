"""Converts a Qwen2.5-VL checkpoint from Hugging Face to Flax/Orbax and back, bit for bit.

    python tools/convert.py to-flax Qwen2.5-VL-3B-Instruct qwen_3b --verify
    python tools/convert.py to-hf qwen_3b Qwen2.5-VL-3B-again
    python tools/convert.py to-flax Qwen2.5-VL-3B-Instruct tuned_3b --adapter lora_checkpoint

Takes any size and any fine-tune of it: one file or shards, either naming of the tensors, tied or untied head, bf16,
fp16 or fp32, with or without LVR's extra tensors. Tokenizer, preprocessor and chat template travel along. Works through
one tensor after the other, so a machine needs disk space but hardly memory. The output appears when it is complete;
after an error, a full disk or SIGTERM nothing is left of it. A Flax folder may be gs:// (written in place, complete
once lvr_jax.json is there), and so may the HF folder that `to-hf` writes: 72B needs no disk then. Both are tested
against a local object store, never on a real bucket.

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import argparse
import os
import signal
import sys

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("convert", then="nothing was kept")

# A converter needs no accelerator, and must not take one away from a training run beside it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import logging

from lvr_jax.checkpoints import CheckpointError, open_hf, open_ours, to_flax, to_hf
from lvr_jax.data.tokenizers import TokenizerError, check_config, load_tokenizer
from lvr_jax.models.interface import Config, ConfigError
from lvr_jax.progress import tqdm

DTYPES = {"keep": None, "bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}


class Stopped(Exception):
    """A signal asked the run to end."""


class StopBetweenPieces:
    """Turns SIGTERM and Ctrl-C into an orderly end: the piece being written is finished, then the output is removed."""

    def __init__(self, bar: tqdm):
        self.bar, self.number = bar, None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.remember)

    def remember(self, number, frame) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)       # a second one ends the process at once

    def __call__(self, count: int) -> None:
        if self.number is not None:
            raise Stopped(f"stopped by {signal.Signals(self.number).name}; nothing was kept")
        self.bar.update(count)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, target in (("to-flax", "HF_DIR", "OUT_DIR"), ("to-hf", "OUT_DIR", "HF_DIR")):
        command = commands.add_parser(
            name, help=f"{source} {target}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("source", metavar=source)
        command.add_argument("target", metavar=target)
        command.add_argument("--dtype", choices=DTYPES, default="keep", help="type of all parameters (default: keep)")
        command.add_argument("--verify", action="store_true", help="read back and compare every tensor")
        command.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
        if name == "to-flax":
            command.add_argument("--adapter", metavar="LORA_DIR", help="LoRA adapter in PEFT's layout, to be merged")
        if name == "to-hf":
            command.add_argument(
                "--shard-gb", type=float, default=5.0, help="largest shard in GB where no original shards are known"
            )
    options = parser.parse_args(arguments)
    if not 1e-9 <= getattr(options, "shard_gb", 1) <= 1e9:      # NaN is neither
        parser.error(f"--shard-gb is {options.shard_gb}, expected a number of GB")
    return options


def check_token_ids(files, fields: dict, config: Config) -> None:
    """The ids in config.json against the checkpoint's own tokenizer, and both against the embedding's real rows."""
    if (files / "tokenizer.json").exists():
        check_config(load_tokenizer(files), {**fields, "vocab_size": config.text.vocab}, str(files / "config.json"))


def convert(options: argparse.Namespace) -> None:
    """Converts as the options say."""
    to_ours = options.command == "to-flax"
    source = (open_hf if to_ours else open_ours)(options.source)
    check_token_ids(source.folder if to_ours else source.files, source.fields, source.config)
    if to_ours and source.left_behind:
        print(f"left behind: {', '.join(source.left_behind)}", file=sys.stderr)
    total = source.nbytes * (2 if options.verify else 1)
    with tqdm(total=total, unit="B", unit_scale=True, desc=options.command, mininterval=0.5, delay=0.5) as bar:
        chosen = {
            "dtype": DTYPES[options.dtype],
            "verify": options.verify,
            "overwrite": options.overwrite,
            "progress": StopBetweenPieces(bar),
        }
        if to_ours:
            to_flax(options.source, options.target, adapter=options.adapter, **chosen)
        else:
            to_hf(options.source, options.target, shard_bytes=int(options.shard_gb * 1e9), **chosen)
    print(f"{options.target}: {len(source.tensors)} tensors" + (", verified" if options.verify else ""))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.ERROR)            # Orbax warns of what is meant to be so
    try:
        convert(options)
    except (CheckpointError, ConfigError, TokenizerError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except (Stopped, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
