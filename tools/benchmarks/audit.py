"""Times a whole audit, default and light, against a plain evaluation of the same items.

Digit search on pictures of 1,120 vision tokens, a small random network, LVR's tokens, and prompts that end with the
start marker, so that a network that was never trained reasons in latents. The audit is all that makes audit.json
(stages on the device and analysis, not the page), the baseline `evaluation.runner.run` with as many answer tokens. Both
have compiled before the clock starts. Every stage runs on
every item here; an audit of more items patches 48 of them, differentiates 64 and teacher-forces 200.
"""

import importlib.util
import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from lvr_jax.checkpoints import save_params
from lvr_jax.data.tokenizers import load_tokenizer
from lvr_jax.evaluation.protocol import Budget, protocol
from lvr_jax.evaluation.runner import load_benchmark
from lvr_jax.evaluation.runner import run as evaluate
from lvr_jax.evaluation.subject import open_subject
from lvr_jax.latents import sweep
from lvr_jax.models.families import abstract_model
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.prism import audit, experiment
from lvr_jax.prism.measure import capture, lens, sensitivity, teacher

GOALS = {"": 5.0, "light": 2.0}
ITEMS, ROWS, TOKENS, LATENTS = 8, 8, 16, 8
SCENES = {"size": ITEMS, "height": 784, "width": 1120, "digits": 6}
ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "lvr_jax" / "assets" / "tiny" / "tokenizer.json"
CONFIG = Config(
    vision=VisionConfig(depth=4, hidden=128, intermediate=352, heads=4, out_hidden=256, full_attention_layers=(3,)),
    text=TextConfig(
        vocab=512, hidden=256, intermediate=768, layers=6, heads=4, kv_heads=2, head_width=64,
        mrope_section=(8, 12, 12), tied=True,
    ),
    image_token_id=392, video_token_id=393, vision_start_token_id=389,
)  # fmt: skip


def run() -> dict:
    with tempfile.TemporaryDirectory(prefix="bench_audit_") as folder:
        folder = Path(folder)
        make_checkpoint(folder / "random")
        chosen = protocol("clean", max_new_tokens=TOKENS, steps=Budget(LATENTS, LATENTS, LATENTS))
        subject = open_subject(folder / "random")
        benchmark = load_benchmark("digit_search", None, chosen, **SCENES)
        for number in ("compiles", "measured"):
            start = _clocks()
            evaluate(subject, benchmark, chosen, folder / f"{number}.jsonl", rows=ROWS, programs=1, progress=False)
            plain = _clocks() - start
            audits = {name or "default": timed(folder, name, number) for name in GOALS}
    ratios = {name: (seconds / plain).tolist() for name, (seconds, _) in audits.items()}
    goals = {"default": GOALS[""], "light": GOALS["light"]}
    return {
        "name": "audit", "ratio": ratios["default"][0], "goal": goals["default"],
        "holds": all(ratios[name][0] <= goal for name, goal in goals.items()),
        "seconds": float(audits["default"][0][0]), "baseline_seconds": float(plain[0]),
        "details": {
            "ratios": {name: round(wall, 2) for name, (wall, _) in ratios.items()}, "goals": goals,
            "ratios_of_processor_seconds": {name: round(processor, 2) for name, (_, processor) in ratios.items()},
            "seconds_and_processor_seconds": {
                "evaluation": plain.round(2).tolist(),
                **{name: {part: value.round(2).tolist() for part, value in ({"whole": seconds} | parts).items()}
                   for name, (seconds, parts) in audits.items()},
            },
            "load": [round(load, 1) for load in os.getloadavg()], "cores": os.cpu_count(),
            "items": ITEMS, "vision_tokens": 1120, "answer_tokens": TOKENS, "latents": LATENTS,
            "device": jax.devices()[0].device_kind,
        },
    }  # fmt: skip


def _clocks() -> np.ndarray:
    """Seconds on the wall, and of processors: the second says more where others use the machine too."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(folder: Path, which: str, number: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Seconds (`_clocks`) of one audit, and of its parts."""
    parts: dict[str, np.ndarray] = {}
    workdir = folder / f"{which or 'default'}-{number}"
    with ExitStack() as stack:
        for owner, name, part in (
            (capture, "run", "capture"), (lens, "run", "lens"), (teacher, "run", "teacher"),
            (sensitivity, "run", "sensitivity"), (audit.Audit, "_analysis", "analysis"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, _clocked(getattr(owner, name), parts, part)))
        # The sweep's folder says which of the stages it runs.
        stack.enter_context(mock.patch.object(sweep, "run", _clocked(sweep.run, parts, None)))
        start = _clocks()
        experiment.run(config(which, folder / "random"), workdir, progress=False)
        seconds = _clocks() - start
    missing = {"capture", "sweep", "teacher", "analysis", *(() if which else ("patching", "sensitivity"))} - set(parts)
    if missing:
        raise RuntimeError(f"audit: the stages {', '.join(sorted(missing))} did not run")
    parts["rest"] = seconds - sum(parts.values())
    shutil.rmtree(workdir)
    return seconds, parts


def _clocked(work, parts: dict[str, np.ndarray], part: str | None):
    def clocked(*arguments, **options):
        start = _clocks()
        result = work(*arguments, **options)
        name = part or Path(arguments[3]).name
        parts[name] = parts.get(name, 0) + _clocks() - start
        return result

    return clocked


def config(which: str, checkpoint: Path) -> Any:
    """An audit's config for a checkpoint: default or light."""
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.get_config(which)
    made.update_from_flattened_dict({
        "checkpoint": str(checkpoint), "benchmark": "digit_search", "budget": LATENTS, "rows": ROWS, "programs": 1,
        "options": ", ".join(f"{name}={value}" for name, value in SCENES.items()), "force_latents": True,
        "switches": f"max_new_tokens={TOKENS}", "alignment.template": "lvr", "report": False,
    })  # fmt: skip
    return made


def make_checkpoint(folder: Path) -> None:
    """Random weights that keep the scale of activations, with LVR's tokens."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name, x = path[-1].key, rng.standard_normal(leaf.shape).astype(np.float32)
        if "norm" in name:
            return 1 + 0.1 * x
        if "bias" in name:
            return 0.1 * x
        fan = {"embed": 1, "out": np.prod(leaf.shape[-3:-1])}.get(name, leaf.shape[-2])
        return x / np.float32(np.sqrt(fan))

    token = load_tokenizer(TOKENIZER).id
    fields = {"lvr_start_id": token("<|lvr_start|>"), "lvr_id": token("<|lvr|>"), "eos_token_id": token("<|im_end|>"),
              "lvr_end_id": token("<|lvr_end|>"), "lvr_latent_end_id": token("<|lvr_latent_end|>")}  # fmt: skip
    save_params(folder, jax.tree_util.tree_map_with_path(draw, abstract_model(CONFIG)[1]), CONFIG, fields=fields)
    shutil.copy(TOKENIZER, folder / "hf")
    limits = {"min_pixels": 784, "max_pixels": SCENES["height"] * SCENES["width"]}
    (folder / "hf" / "preprocessor_config.json").write_text(json.dumps(limits))


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
