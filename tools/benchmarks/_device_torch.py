"""Hugging Face's network in torch at the shapes of the bench `device`, on the same device, or why it is not there."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import jax
import numpy as np

from benchmarks.sweep import prompt
from lvr_jax.data.sample import ROLE_IMAGE, Example
from lvr_jax.data.synthetic import synthetic_example
from lvr_jax.models.qwen2_5_vl.vision import normalise

if TYPE_CHECKING:
    from benchmarks.device import Setting


def missing() -> str | None:
    """Why torch cannot be compared here."""
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        return f"no {absent[0]} to compare with"
    import torch

    platform = jax.devices()[0].platform
    if platform == "tpu" or (platform == "gpu" and not torch.cuda.is_available()):
        return f"torch has no {platform} here"
    return None


class _Side:
    """The network with drawn weights: fp32 for training, which computes in the setting's type, else of that type."""

    def __init__(self, s: Setting, trains: bool):
        import torch
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        self.torch, self.dtype = torch, getattr(torch, s.dtype)
        self.device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
        flash = self.device == "cuda" and importlib.util.find_spec("flash_attn") is not None
        self.attention = "flash_attention_2" if flash else "sdpa"
        torch.manual_seed(0)
        config = Qwen2_5_VLConfig.from_dict(s.config.to_hf())
        with torch.device(self.device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=self.attention)
        self.model = model.to(torch.float32 if trains else self.dtype).train(trains)
        self.model.model.visual.requires_grad_(False)

    def embedded(self, examples: list[Example]):
        """(inputs [B, T, D], positions [3, B, T]) of examples of one length."""
        torch, model = self.torch, self.model.model
        to = lambda x: torch.tensor(np.asarray(x)).to(self.device)  # noqa: E731
        pixels = [np.asarray(normalise(e.patches)).reshape(-1, 3, 1, 196) for e in examples]
        pixels = to(np.concatenate([np.repeat(x, 2, 2).reshape(len(x), -1) for x in pixels])).to(model.dtype)
        with torch.no_grad():
            seen = model.get_image_features(pixels, to(np.concatenate([e.grids for e in examples])).long())
        seen = getattr(seen, "pooler_output", seen)
        seen = torch.cat(list(seen)) if isinstance(seen, list | tuple) else seen
        x = model.get_input_embeddings()(to(np.stack([e.tokens for e in examples])).long())
        image = to(np.stack([e.role == ROLE_IMAGE for e in examples]))
        positions = to(np.stack([e.positions for e in examples], 1)).long()
        return x.masked_scatter(image[..., None], seen.to(x.dtype)), positions

    def hidden(self, x, positions, cache=None, use_cache=False):
        return self.model.model.language_model(
            inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=use_cache
        )

    def once(self, work: Callable) -> float:
        """Seconds of one call."""
        wait = self.torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - began

    def seconds(self, work: Callable, rounds: int) -> float:
        """Median of calls after a first one."""
        return median([self.once(work) for _ in range(rounds + 1)][1:])


def compared(measure: Callable) -> Callable:
    """A measurement, or the reason that there is none."""

    @functools.wraps(measure)
    def measured(*arguments) -> float | str:
        return missing() or measure(*arguments)

    return measured


@compared
def training(s: Setting, tokens: int) -> float:
    """Tokens/s of forward, backward and AdamW with fp32 masters, the tower frozen."""
    side = _Side(s, True)
    torch = side.torch
    trained = [p for p in side.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    examples = [synthetic_example(s.budget, seed=n) for n in range(s.rows)]
    labels = torch.tensor(np.stack([np.where(e.loss_mask, e.tokens, -100) for e in examples])).long().to(side.device)

    def step() -> None:
        with torch.autocast(side.device, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            hidden = side.hidden(*side.embedded(examples)).last_hidden_state
            logits = side.model.lm_head(hidden)[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return tokens / side.seconds(step, s.rounds)


@compared
def prefill(s: Setting, tokens: int) -> float:
    """Tokens/s of one prompt with its image, cache kept."""
    side = _Side(s, False)
    with side.torch.inference_mode():
        return tokens / side.seconds(
            lambda: side.hidden(*side.embedded([prompt(0, s.config)]), use_cache=True), s.rounds
        )  # fmt: skip


@compared
def decode(s: Setting, tokens: int, steps: int) -> float:
    """Steps/s after the prompt, greedy, one token at a time with the cache."""
    side = _Side(s, False)
    torch = side.torch
    with torch.inference_mode():
        x, positions = side.embedded([prompt(0, s.config)])
        spent = []
        for _ in range(s.rounds + 1):
            out = side.hidden(x, positions, use_cache=True)
            at, last, cache = positions[:, :, -1:], out.last_hidden_state[:, -1:], out.past_key_values

            def loop(at=at, last=last, cache=cache) -> None:
                for _ in range(steps):
                    at = at + 1
                    token = side.model.lm_head(last).argmax(-1)
                    out = side.hidden(side.model.model.get_input_embeddings()(token), at, cache, True)
                    last, cache = out.last_hidden_state, out.past_key_values

            spent.append(side.once(loop))
    return steps / median(spent[1:])

