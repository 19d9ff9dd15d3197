"""Makes the base of the rotation block, lvr_jax/assets/tiny_rotation, from the tiny checkpoint.

    python tools/make_rotation.py --workdir runs/rotation --output lvr_jax/assets/tiny_rotation

A tokenizer with the words of rotation analogies, a vision warm-up in which panels name their turns and places
(tools/tiny/panels.py), then questions by configs/rotation_steps.py and configs/rotation_base.py. OUTPUT is a Hugging
Face folder with a card that states what was learnt. The same command goes on where it was stopped.

Exit status: 0 done, 1 failed, 2 bad input.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

# Configs import each other as `configs.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import rotation_base, rotation_steps
from lvr_jax.checkpoints import load, save_params, to_hf
from lvr_jax.data.rotation_scenes import ORDINALS
from lvr_jax.data.tokenizers import load_tokenizer
from lvr_jax.models.interface import Config
from make_tiny import once, run_stage, write_files
from tiny import command, panels, rotation_card
from tiny.tokenizer import make_rotation_tokenizer
from tiny.warm_up import same_words

BASE = Path(__file__).resolve().parents[1] / "lvr_jax/assets/tiny"
ITEMS = 1000        # for each row of the card
SEEDS = 10          # of analogies that stages draw with


def main(arguments: list[str] | None = None) -> int:
    return command.run(command.parser(__doc__, drawn="analogies"), arguments, "make_rotation", make)


def make(options: argparse.Namespace) -> None:
    """Makes the checkpoint and its card."""
    work = options.workdir
    work.mkdir(parents=True, exist_ok=True)
    seeing = once(work / "warm_up.json", lambda: _warm_up(options))
    steps, checkpoint = [], work / "warm_up"
    for module in (rotation_steps, rotation_base):
        config = _config(module, options, checkpoint)
        place = work / config.name
        once(place.with_suffix(".json"), functools.partial(run_stage, config, place))
        steps.append(config.steps)
        checkpoint = place / "export"
    to_hf(checkpoint, options.output, dtype=jnp.bfloat16, overwrite=True)
    text = rotation_card.card(config, seeing, steps, rotation_card.measure(options.output, ITEMS, work))
    (options.output / "README.md").write_text(text)
    print(text)


def _config(module: ModuleType, options: argparse.Namespace, checkpoint: Path) -> ConfigDict:
    """The stage's own config with the seed, the steps and the place of this run."""
    c = module.get_config()
    for source in c.data.sources.values():
        source.seed += SEEDS * (options.seed - 1)
    c.seed, c.init.checkpoint = options.seed, str(checkpoint)
    c.steps = options.steps or c.steps
    return c


def _warm_up(options: argparse.Namespace) -> dict:
    config, params, _ = load(BASE)
    old, new = load_tokenizer(BASE), make_rotation_tokenizer()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    params["text"]["embed"] = panels.carry(params["text"]["embed"], old, new, options.seed)
    params, found = panels.warm_up(params, config, new, steps=options.warm_up_steps, seed=options.seed)
    params["text"]["embed"] = same_words(params["text"]["embed"], new, ORDINALS)
    config, files = renumbered(config, new), options.workdir / "files"
    write_files(files, new, config)
    save_params(options.workdir / "warm_up", params, config, files=files, overwrite=True)
    return {"panels": found, "steps": options.warm_up_steps}


def renumbered(config: Config, tokenizer) -> Config:
    """The same network with the ids of another tokenizer's special tokens."""
    ids = {field: tokenizer.id(f"<|{name}|>") for field, name in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"), ("vision_start_token_id", "vision_start"))}
    return dataclasses.replace(config, **ids)


if __name__ == "__main__":
    sys.exit(main())
