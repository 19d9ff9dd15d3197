"""Items a second of our evaluation, against Hugging Face torch's latent loop at batch 1.

Digit search on a random network of middle size (6 M parameters), fp32, CPU, every item with its own picture. The
system is Laser, whose first token is forced to be the start marker, so that a network that was never trained reasons in
latents too; text then runs to the same length on both sides. Ours is the whole of `evaluation.runner.run`: pictures,
tokens, batches, latent loop, parsing, JSONL. The baseline is what the published harnesses do, one item after the other:
prefill with `use_cache`, then one forward pass a token that feeds the last hidden state inside a block. It gets its
pictures and tokens for nothing. Both sides' times exclude compilation and warm-up; replies must agree.
"""

import contextlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.tokenizers import ChatTokenizer, add_latent_tokens, load_tokenizer
from lvr_jax.evaluation.benchmarks import load
from lvr_jax.evaluation.protocol import Budget, protocol
from lvr_jax.evaluation.runner import run as evaluate
from lvr_jax.evaluation.subject import Subject, open_subject
from lvr_jax.latents.spec import SYSTEMS
from lvr_jax.models.families import slots
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.weight_table import canonical

GOAL = 1.0
ITEMS, ROWS, ROUNDS, TOKENS, LATENTS = 16, 16, 3, 16, 8
ROOT = Path(__file__).parents[2]
SYSTEM = SYSTEMS["laser"]
CONFIG = Config(
    vision=VisionConfig(depth=4, hidden=128, intermediate=352, heads=4, out_hidden=256, full_attention_layers=(1, 3)),
    text=TextConfig(
        vocab=512, hidden=256, intermediate=768, layers=6, heads=4, kv_heads=2, head_width=64,
        mrope_section=(8, 12, 12), tied=True,
    ),
    image_token_id=392, video_token_id=393, vision_start_token_id=389,
)  # fmt: skip


def run() -> dict:
    import torch

    torch.set_grad_enabled(False)
    chosen = protocol("clean", max_new_tokens=TOKENS, steps=Budget(LATENTS, LATENTS, LATENTS))
    benchmark = load("digit_search", size=ITEMS)
    with tempfile.TemporaryDirectory(prefix="bench_evaluate_") as folder:
        folder = Path(folder)
        tensors = make_checkpoint(folder / "hf")
        subject = open_subject(folder / "hf", system=SYSTEM.name)
        network = _Torch(subject, tensors)
        prompts = [encode_prompt(sample, subject.tokenizer, min_pixels=subject.min_pixels,
                                 max_pixels=subject.max_pixels, protocol=chosen.image_protocol) for sample in benchmark]
        ours, theirs, replies = [], [], []
        network.choose_threads(prompts[0])
        for number in range(ROUNDS + 1):                    # the first round compiles and warms up
            start = time.perf_counter()
            results = evaluate(subject, benchmark, chosen, folder / f"{number}.jsonl", rows=ROWS, programs=1,
                               progress=False)
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            replies = [network.reply(prompt) for prompt in prompts]
            theirs.append(time.perf_counter() - start)
    equal = sum(item.reply == subject.tokenizer.decode(ids) for item, ids in zip(results.items, replies))
    if equal < 0.9 * ITEMS or any(item.latents_fed != LATENTS for item in results.items):
        raise RuntimeError(f"evaluate_torch: {equal} of {ITEMS} replies agree, expected all but a tie or two")
    seconds, baseline = float(np.median(ours[1:])), float(np.median(theirs[1:]))
    return {
        "name": "evaluate_torch", "ratio": baseline / seconds, "goal": GOAL, "holds": bool(baseline / seconds >= GOAL),
        "seconds": seconds, "baseline_seconds": baseline,
        "details": {
            "items_per_second": round(ITEMS / seconds, 2), "torch_items_per_second": round(ITEMS / baseline, 2),
            "items": ITEMS, "rows_a_batch": ROWS, "prompt_tokens": len(prompts[0].tokens), "latents": LATENTS,
            "tokens": TOKENS, "parameters": int(sum(x.size for x in tensors.values())), "replies_that_agree": equal,
            "rounds": {"ours": [round(t, 3) for t in ours], "torch": [round(t, 3) for t in theirs]},
            "torch_threads": torch.get_num_threads(),
        },
    }  # fmt: skip


def make_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """A Hugging Face folder of random weights that keep the scale of activations, with the tiny tokenizer."""
    rng, tensors = np.random.default_rng(0), {}
    for name, slot in slots(CONFIG).items():
        x = rng.standard_normal(slot.hf_shape).astype(np.float32)
        if len(slot.hf_shape) == 1:
            x = 0.1 * x + (1 if "norm" in name or "ln_q" in name else 0)
        elif "embed_tokens" not in name:
            x /= np.sqrt(np.prod(slot.hf_shape[1:]))
        tensors[name] = x.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf() | {"eos_token_id": 388}))
    tokenizer: ChatTokenizer = load_tokenizer(ROOT / "tests" / "golden" / "checkpoints" / "tokenizer.json")
    add_latent_tokens(tokenizer, SYSTEM.added_tokens).backend.save(str(folder / "tokenizer.json"))
    return tensors


class _Torch:
    """Hugging Face's network and the latent loop of the published harnesses round it, one item at a time."""

    def __init__(self, subject: Subject, tensors: dict[str, np.ndarray]):
        import torch
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        v, t = CONFIG.vision, CONFIG.text
        config = Qwen2_5_VLConfig(
            tie_word_embeddings=t.tied, image_token_id=392, video_token_id=393, vision_start_token_id=389,
            vision_config={
                "depth": v.depth, "hidden_size": v.hidden, "intermediate_size": v.intermediate, "num_heads": v.heads,
                "out_hidden_size": v.out_hidden, "fullatt_block_indexes": list(v.full_attention_layers),
                "window_size": v.window_pixels, "patch_size": v.patch, "spatial_merge_size": v.merge,
                "temporal_patch_size": v.temporal_patch, "in_channels": v.channels,
                "tokens_per_second": v.tokens_per_second, "hidden_act": "silu",
            },
            text_config={
                "vocab_size": t.vocab, "hidden_size": t.hidden, "intermediate_size": t.intermediate,
                "num_hidden_layers": t.layers, "num_attention_heads": t.heads, "num_key_value_heads": t.kv_heads,
                "rms_norm_eps": t.norm_eps, "hidden_act": "silu", "use_sliding_window": False,
                "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 4096,
                "tie_word_embeddings": t.tied,
                "rope_parameters": {"rope_type": "default", "rope_theta": t.rope_theta,
                                    "mrope_section": list(t.mrope_section)},
            },
            attn_implementation="sdpa",
        )  # fmt: skip
        self.torch, self.network = torch, Qwen2_5_VLForConditionalGeneration(config).eval()
        for name, parameter in self.network.named_parameters():
            with contextlib.suppress(KeyError):             # a tied head is not stored
                parameter.data.copy_(torch.tensor(tensors[canonical(name)]))
        token = subject.tokenizer.id
        stage = SYSTEM.stages[0]
        self.start, self.end = token(stage.start), token(stage.end)
        self.stop = subject.stop

    def choose_threads(self, prompt) -> None:
        """One thread or one a core, whichever is faster: on a busy machine small products wait for the second."""
        seconds = {}
        for threads in (self.torch.get_num_threads(), 1):
            self.torch.set_num_threads(threads)
            self.reply(prompt)
            start = time.perf_counter()
            self.reply(prompt)
            seconds[threads] = time.perf_counter() - start
        self.torch.set_num_threads(min(seconds, key=seconds.get))

    def reply(self, prompt) -> list[int]:
        torch, inner = self.torch, self.network.model
        pixels = (prompt.patches.reshape(-1, 3, 1, 196) / 255.0 - _MEAN) / _STD
        pixels = np.repeat(pixels, 2, axis=2).reshape(len(prompt.patches), -1).astype(np.float32)
        ids = torch.tensor(prompt.tokens, dtype=torch.long)[None]
        out = inner(
            input_ids=ids, pixel_values=torch.tensor(pixels), image_grid_thw=torch.tensor(prompt.grids).long(),
            attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == CONFIG.image_token_id).int(),
            use_cache=True,
        )  # fmt: skip
        position, found, left, forced = int(prompt.positions.max()) + 1, [], 0, self.start
        while True:
            hidden = out.last_hidden_state[:, -1:]
            picked = int(self.network.lm_head(hidden)[0, -1].argmax()) if forced is None else forced
            forced = None
            opened = bool(found) and found[-1] == self.start and not left
            was, left = left, LATENTS if opened else max(left - 1, 0)
            if was and (picked == self.end or not left):    # the block closes: its end marker is forced
                left, picked = 0, self.end
            found.append(picked)
            if not left and (picked in self.stop or len(found) >= TOKENS):
                return found
            fed = hidden if left else inner.get_input_embeddings()(torch.tensor([[picked]]))
            out = inner(
                inputs_embeds=fed, past_key_values=out.past_key_values, use_cache=True,
                position_ids=torch.full((3, 1, 1), position),
            )  # fmt: skip
            position += 1


_MEAN = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
_STD = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
