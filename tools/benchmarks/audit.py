"""Times a whole audit, default and light, against a plain evaluation of the same items.

Digit search on pictures of 1,120 vision tokens, a random network with the proportions of evaluate_torch, LVR's tokens,
and prompts that end with the start marker, so that a network that was never trained reasons in latents. The audit is
all that makes audit.json (stages on the device and analysis; the page is timed beside it), the baseline
`evaluation.runner.run` with as many answer tokens. Both have compiled before the clock starts.
"""

import importlib.util
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
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
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.qwen2_5_vl.model import abstract_model
from lvr_jax.prism import audit, experiment
from lvr_jax.prism.measure import capture, lens, sensitivity, teacher
from lvr_jax.prism.report import report

GOALS = {"": 5.0, "light": 2.0}
ITEMS, ROWS, ROUNDS, TOKENS, LATENTS = 32, 8, 3, 16, 8
SCENES = {"size": ITEMS, "height": 784, "width": 1120, "digits": 6}
ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "golden" / "checkpoints" / "tokenizer.json"
CONFIG = Config(
    vision=VisionConfig(depth=4, hidden=128, intermediate=352, heads=4, out_hidden=256, full_attention_layers=(1, 3)),
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
        times: dict[str, list[float]] = {"evaluation": [], **{name: [] for name in GOALS}}
        stages: dict[str, dict[str, list[float]]] = {name: {} for name in GOALS}
        for number in range(ROUNDS + 1):                    # the first round compiles and warms up
            start = time.perf_counter()
            evaluate(subject, benchmark, chosen, folder / f"{number}.jsonl", rows=ROWS, programs=1, progress=False)
            times["evaluation"].append(time.perf_counter() - start)
            for name in GOALS:
                seconds, parts = timed(folder, name, number)
                times[name].append(seconds)
                for part, value in parts.items():
                    stages[name].setdefault(part, []).append(value)
    middle = {name: median(values[1:]) for name, values in times.items()}
    ratios = {name or "default": middle[name] / middle["evaluation"] for name in GOALS}
    return {
        "name": "audit", "ratio": ratios["default"], "goal": GOALS[""],
        "holds": all(ratios[name or "default"] <= goal for name, goal in GOALS.items()),
        "seconds": middle[""], "baseline_seconds": middle["evaluation"],
        "details": {
            "ratios": ratios, "goals": {"default": GOALS[""], "light": GOALS["light"]},
            "seconds_by_stage": {
                name or "default": {part: round(median(values[1:]), 2) for part, values in parts.items()}
                for name, parts in stages.items()
            },
            "first_round_with_compilation": {name or "default": round(values[0], 1) for name, values in times.items()},
            "items": ITEMS, "vision_tokens": 1120, "answer_tokens": TOKENS, "latents": LATENTS, "rounds": ROUNDS,
            "device": jax.devices()[0].device_kind,
        },
    }  # fmt: skip


def timed(folder: Path, which: str, number: int) -> tuple[float, dict[str, float]]:
    """Seconds of one audit without its page, and of its parts, the page among them."""
    parts: dict[str, float] = {}
    workdir = folder / f"{which or 'default'}-{number}"
    with ExitStack() as stack:
        for owner, name, part in (
            (capture, "run", "capture"), (lens, "run", "lens"), (teacher, "run", "teacher"),
            (sensitivity, "run", "sensitivity"), (audit.Audit, "_analysis", "analysis"), (report, "write", "page"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, _clocked(getattr(owner, name), parts, part)))
        # The sweep's folder says which of the stages it runs.
        stack.enter_context(mock.patch.object(sweep, "run", _clocked(sweep.run, parts, None)))
        start = time.perf_counter()
        experiment.run(config(which, folder / "random"), workdir, progress=False)
        seconds = time.perf_counter() - start - parts["page"]
    parts["rest"] = seconds - sum(value for part, value in parts.items() if part != "page")
    shutil.rmtree(workdir)
    return seconds, parts


def _clocked(work, parts: dict[str, float], part: str | None):
    def clocked(*arguments, **options):
        start = time.perf_counter()
        result = work(*arguments, **options)
        name = part or Path(arguments[3]).name
        parts[name] = parts.get(name, 0) + time.perf_counter() - start
        return result

    return clocked


def config(which: str, checkpoint: Path):
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.get_config(which)
    made.update_from_flattened_dict({
        "checkpoint": str(checkpoint), "benchmark": "digit_search", "budget": LATENTS, "rows": ROWS, "programs": 1,
        "options": ", ".join(f"{name}={value}" for name, value in SCENES.items()), "force_latents": True,
        "switches": f"max_new_tokens={TOKENS}", "alignment.template": "lvr",
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
