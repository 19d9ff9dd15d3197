"""Makes the checkpoints that ship with the project, lvr_jax/assets/tiny and tiny_one_offset, from nothing.

    python tools/make_tiny.py --workdir runs/tiny --output lvr_jax/assets/tiny

Tokenizer, vision warm-up, digit search by configs/tiny_base.py: that is OUTPUT_one_offset, which replies at one offset
only. The same with filler before the reply (configs/tiny_base_filler.py), from that folder on: OUTPUT. Both are Hugging
Face folders with a card that states what was learnt. The same command goes on where it was stopped; with
`--last-stage` it takes OUTPUT_one_offset as it is and makes OUTPUT from that.

Exit status: 0 done, 1 failed, 2 bad input.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import tiny_base, tiny_base_filler
from lvr_jax.checkpoints import save_params, to_hf
from lvr_jax.data.digit_pictures import COLOUR_NAMES
from lvr_jax.data.tokenizers import IM_END, ChatTokenizer
from lvr_jax.evaluation.protocol import protocol
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.scoring import Score, summarise
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.models.families import random_params, shapes, sizes
from lvr_jax.models.interface import Config
from lvr_jax.training.loop import train
from tiny import cards, command, offsets
from tiny.tokenizer import make_tokenizer
from tiny.warm_up import same_words, warm_up

CONFIG = sizes()["tiny"]
# Matrices start five times wider than published checkpoints do: 0.1, about the inverse root of the widths here.
WIDER = 5.0
# Qwen's layout, for programs that ask a checkpoint for its chat template; ours write the same text without one.
TEMPLATE = Path(__file__).parent / "tiny" / "chat_template.jinja"
ITEMS = 1000        # held-out scenes for the cards
ONE_OFFSET = "_one_offset"
ROUNDS = (600, 1000)    # steps with filler: new scenes and a learning rate that rises and falls anew in each


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, drawn="scenes")
    parser.add_argument("--last-stage", action="store_true", help="go on from OUTPUT_one_offset as it is")
    return command.run(parser, arguments, "make_tiny", make)


def make(options: argparse.Namespace) -> None:
    """Makes both checkpoints and their cards."""
    work, first = options.workdir, options.output.with_name(options.output.name + ONE_OFFSET)
    work.mkdir(parents=True, exist_ok=True)
    if not options.last_stage:
        seeing = once(work / "warm_up.json", lambda: _warm_up(options))
        config = _config(tiny_base, options, work / "warm_up")
        training = once(work / "training.json", lambda: run_stage(config, work / "training"))
        to_hf(work / "training/export", first, dtype=jnp.bfloat16, overwrite=True)
        parameters = sum(math.prod(shape) for shape in shapes(CONFIG).values())
        write_card(first, lambda *found: cards.one_offset(config, parameters, seeing, training, *found), work)
    rounds, checkpoint = [], first
    for number, steps in enumerate(ROUNDS):
        config = _config(tiny_base_filler, options, checkpoint)
        config.steps = options.steps or steps
        config.data.sources.digits.seed += number
        place = work / f"filler_{number + 1}"
        done = once(place.with_suffix(".json"), lambda c=config, place=place: run_stage(c, place))
        rounds.append((config.steps, done["processor_seconds"]))
        checkpoint = place / "export"
    to_hf(checkpoint, options.output, dtype=jnp.bfloat16, overwrite=True)
    write_card(options.output, lambda *found: cards.tiny(config, rounds, *found), work)


def _config(module: ModuleType, options: argparse.Namespace, checkpoint: Path) -> ConfigDict:
    """The stage's own config with the seed, the steps and the place of this run."""
    c = module.get_config()
    # Each stage draws scenes that the one before has not seen.
    c.data.sources.digits.seed += options.seed - 1
    c.seed, c.init.checkpoint, c.steps = options.seed, str(checkpoint), options.steps or c.steps
    return c


def write_card(folder: Path, card: Callable[[list[Score], dict[str, offsets.Right]], str], work: Path) -> None:
    """Measures the checkpoint and writes its model card."""
    scores = evaluate(folder, work / f"{folder.name}.jsonl")
    text = card(scores, offsets.measure(folder, ITEMS))
    (folder / "README.md").write_text(text)
    print(text)


def once(path: Path, stage: Callable[[], dict]) -> dict:
    """The stage's figures, its seconds and those of all cores together: from the file where it is done already."""
    if not path.exists():
        start, processor = time.perf_counter(), time.process_time()
        found = stage()
        found |= {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
        path.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def _warm_up(options: argparse.Namespace) -> dict:
    tokenizer = make_tokenizer()
    params, found = warm_up(initial(options.seed), CONFIG, tokenizer, steps=options.warm_up_steps)
    params["text"]["embed"] = same_words(params["text"]["embed"], tokenizer, COLOUR_NAMES)
    files = options.workdir / "files"
    write_files(files, tokenizer, CONFIG)
    save_params(options.workdir / "warm_up", params, CONFIG, files=files, overwrite=True)
    return found | {"steps": options.warm_up_steps}


def run_stage(config: ConfigDict, workdir: Path) -> dict:
    """Trains by the config, or goes on with it; its last figures."""
    outcome = train(config, workdir)
    if not outcome.finished:
        raise KeyboardInterrupt
    return dict(outcome.metrics)


def initial(seed: int) -> dict:
    """The untrained parameters, drawn wider than usual."""
    params = random_params(CONFIG, seed)
    drawn = lambda x: np.any(np.asarray(x) != 0) and np.any(np.asarray(x) != 1)  # noqa: E731
    return jax.tree.map(lambda x: WIDER * x if drawn(x) else x, params)


def write_files(folder: Path, tokenizer: ChatTokenizer, config: Config) -> None:
    """Writes the files beside the weights of a Hugging Face checkpoint: config, tokenizer, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str())
    end = tokenizer.id(IM_END)
    for name, fields in {
        "config.json": config.to_hf() | {"bos_token_id": end, "eos_token_id": end, "lvr_prompts": "scenes"},
        "generation_config.json": {"do_sample": False, "eos_token_id": [end]},
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 28 * 28, "max_pixels": 112 * 112,
            "patch_size": config.vision.patch, "merge_size": config.vision.merge,
            "temporal_patch_size": config.vision.temporal_patch,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": IM_END, "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        },
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps(fields, indent=2) + "\n")
    (folder / TEMPLATE.name).write_text(TEMPLATE.read_text())


def evaluate(folder: Path, results: Path) -> list[Score]:
    """Accuracy of the decoded reply, and by kind of question, on scenes whose digits were never trained on."""
    ways = protocol("clean", max_new_tokens=16)
    benchmark = load_benchmark("digit_search", None, ways, size=ITEMS, split="test")
    subject = open_subject(folder, system="none", dtype=jnp.float32)
    return summarise(run(subject, benchmark, ways, results, rows=100).marks(), ["micro"])


if __name__ == "__main__":
    sys.exit(main())
