"""What the reference computes: Hugging Face's Qwen2.5-VL in torch, with every stage's input, output and gradient.

In fp64 the reference's own fp32 islands (norms, RoPE, softmax) are widened too, so that nothing but the order of
operations separates the two sides.
"""

import contextlib
import dataclasses
import types

import numpy as np
import torch
from networks import Prompt, hf_fields
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.weight_table import canonical

torch.set_num_threads(1)


class _WideTorch(types.ModuleType):
    """torch, with fp64 under the name float32."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def widened(dtype: torch.dtype):
    """Inside, the modeling file's fp32 islands are fp64 if dtype is."""
    if dtype != torch.float64:
        yield
        return
    saved = modeling.torch, modeling.apply_rotary_pos_emb_vision

    def rotate(q, k, cos, sin):
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return q * cos + modeling.rotate_half(q) * sin, k * cos + modeling.rotate_half(k) * sin

    modeling.torch, modeling.apply_rotary_pos_emb_vision = _WideTorch("torch"), rotate
    try:
        yield
    finally:
        modeling.torch, modeling.apply_rotary_pos_emb_vision = saved


@dataclasses.dataclass
class Stage:
    """One module of one run: input and output, and after `backward` their gradients."""

    input: torch.Tensor
    output: torch.Tensor

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """input, output, d input, d output."""
        return tuple(
            x.detach().numpy() for x in (self.input, self.output, self.input.grad, self.output.grad)
        )


class Reference:
    def __init__(self, config: Config, tensors: dict[str, np.ndarray], dtype: torch.dtype):
        self.config, self.dtype = config, dtype
        with widened(dtype):
            hf_config = Qwen2_5_VLConfig(**hf_fields(config), attn_implementation="eager")
            self.network = modeling.Qwen2_5_VLForConditionalGeneration(hf_config).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.tensor(tensors[canonical(name)]))

    def run(self, prompt: Prompt) -> dict:
        """A pass over one prompt: logits, positions, attention weights, and every stage.

        Stages: `patch_embed`, `block i`, `merger` (one entry a call: images, then videos), `layer i`, `norm`, `head`.
        """
        inner, stages, handles = self.network.model, {}, []

        def watch(name, module):
            def before(_, args, kwargs):
                x = args[0] if args else kwargs["hidden_states"]
                if x.requires_grad and not x.is_leaf:
                    x.retain_grad()
                stages.setdefault(name, []).append(Stage(x, None))

            def after(_, args, kwargs, output):
                output = output[0] if isinstance(output, tuple) else output
                output.retain_grad()
                stages[name][-1].output = output

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))

        watch("patch_embed", inner.visual.patch_embed)
        for i, block in enumerate(inner.visual.blocks):
            watch(f"block {i}", block)
        watch("merger", inner.visual.merger)
        for i, layer in enumerate(inner.language_model.layers):
            watch(f"layer {i}", layer)
        watch("norm", inner.language_model.norm)
        watch("head", self.network.lm_head)
        self.network.zero_grad()
        inputs = self.inputs(prompt)
        try:
            with widened(self.dtype):
                out = self.network(**inputs, output_attentions=True, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return {"logits": out.logits, "attentions": out.attentions, "stages": stages, "inputs": inputs}

    @torch.no_grad()
    def step(self, prompt: Prompt, more: np.ndarray) -> np.ndarray:
        """Logits [1, 1 + n, V] of the prompt's last position and of n given tokens, one pass each, as `generate` does.

        `generate` gives new tokens the position of their place in the sequence plus the prompt's rope delta.
        """
        inputs, rows = self.inputs(prompt), []
        with widened(self.dtype):
            out = self.network(**inputs, use_cache=True)
            rows.append(out.logits[:, -1])
            delta = self.network.model.rope_deltas
            for place, token in enumerate(more, start=len(prompt.ids)):
                position = place + (0 if delta is None else int(delta))
                out = self.network(
                    input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True,
                    position_ids=torch.full((3, 1, 1), position),
                )  # fmt: skip
                rows.append(out.logits[:, -1])
        return torch.stack(rows, 1).numpy()

    def inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        ids = torch.tensor(prompt.ids)[None]
        kinds = (ids == self.config.image_token_id).int() + 2 * (ids == self.config.video_token_id).int()
        inputs = {"input_ids": ids, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(ids)}
        for video, (pixels, grid) in enumerate([("pixel_values", "image"), ("pixel_values_videos", "video")]):
            mine = [i for i, is_video in enumerate(prompt.videos) if is_video == bool(video)]
            if mine:
                parts = self.split(prompt, prompt.patches)
                patches = torch.tensor(np.concatenate([parts[i] for i in mine])).to(self.dtype)
                inputs[pixels] = patches.requires_grad_()
                inputs[f"{grid}_grid_thw"] = torch.tensor(prompt.grids[mine])
        if any(prompt.videos):
            inputs["second_per_grid_ts"] = torch.tensor(prompt.seconds)
        return inputs

    def split(self, prompt: Prompt, rows: np.ndarray, per_merged: bool = False) -> list[np.ndarray]:
        """Rows of all pictures -> one array a picture."""
        sizes = prompt.grids.prod(1) // (self.config.vision.merge**2 if per_merged else 1)
        return np.split(rows, np.cumsum(sizes)[:-1])

    def raster(self, prompt: Prompt, calls: list[np.ndarray], windowed: bool, per_merged: bool = False) -> np.ndarray:
        """Rows of one stage's calls (images, then videos) -> raster order of all pictures as they appear.

        windowed: the rows are in the reference's window order, [P, D].
        """
        v, calls, pictures = self.config.vision, iter(calls), {}
        for video in (False, True):
            mine = [i for i, is_video in enumerate(prompt.videos) if is_video == video]
            if not mine:
                continue
            rows = next(calls)
            if windowed:
                order, _ = modeling.get_vision_window_index(
                    torch.tensor(prompt.grids[mine]), spatial_merge_size=v.merge, window_size=v.window_pixels,
                    patch_size=v.patch,
                )  # fmt: skip
                unit = 1 if per_merged else v.merge**2
                rows = rows.reshape(len(order), unit, -1)[np.argsort(order.numpy())].reshape(len(rows), -1)
            sizes = prompt.grids[mine].prod(1) // (v.merge**2 if per_merged else 1)
            pictures.update(zip(mine, np.split(rows, np.cumsum(sizes)[:-1])))
        return np.concatenate([pictures[i] for i in sorted(pictures)])

    def gradients(self) -> dict[str, np.ndarray]:
        """By canonical name; a parameter that the pass did not touch has gradient zero."""
        return {
            canonical(name): (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
            for name, p in self.network.named_parameters()
        }
