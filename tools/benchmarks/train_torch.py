"""Tokens a second of our training step against a Hugging Face torch loop, on the same CPU.

LVR with teacher forcing on a network of a quarter of the 3B one's widths and depths, 58 M parameters, loaded by both
sides from one Hugging Face checkpoint: vision tower (frozen), decoder, cross-entropy and reconstruction, backward pass,
clipping and AdamW. Sixteen examples a step, sizes, boxes and text lengths of Visual-CoT; padding does not count.

Torch does what the released code does: packs of four, each padded to its longest, gradients accumulated over packs,
SDPA, the tower without gradient; AdamW is the fused one. Ours packs the examples into rows of one length, and runs as a
config on this device would. Both are fp32 on the same threads, in one process that keeps its memory, as a study's
workers do: our step takes 2.7 GB anew each time, which the kernel gives the slower the more torch has just given back.
The clock starts when both have what memory they need, after four steps of each (a third of our second step goes into
page faults, none of the fifth); compilation is left out, and said. The losses of the first steps must agree to 1e-4. On
a machine that does other work too, threads that wait for each other burn time: the ratio of processor seconds with both
sides on one thread (`taskset -c 0`) says more there.
"""

import functools
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from benchmarks._load import watched
from benchmarks._own_process import measured_alone
from lvr_jax.checkpoints import load_hf
from lvr_jax.data.boxes import box_to_tokens
from lvr_jax.data.filling import fill_row
from lvr_jax.data.images import LVR_PIXELS, PATCH, smart_resize
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.sample import ROLE_ANSWER, ROLE_IMAGE, ROLE_LATENT, ROLE_TEXT, Example
from lvr_jax.latents.objectives import Objective
from lvr_jax.models.families import abstract_model, rules, slots
from lvr_jax.models.layout import mrope_positions
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.qwen2_5_vl.vision import normalise
from lvr_jax.training.experiment import compute_of
from lvr_jax.training.optimizer import AdamW
from lvr_jax.training.partitioning import make_mesh
from lvr_jax.training.schedules import Points
from lvr_jax.training.state import abstract_state, start
from lvr_jax.training.step import Recipe, compiled_step

GOAL, LAMBDA, RATE, STEPS = 1.5, 0.1, 1e-4, 10_000
CONFIG = Config(
    vision=VisionConfig(depth=8, hidden=320, intermediate=856, heads=4, out_hidden=512, full_attention_layers=(7,)),
    text=TextConfig(
        vocab=4096, hidden=512, intermediate=2752, layers=9, heads=8, kv_heads=2, head_width=64,
        mrope_section=(8, 12, 12), tied=True,
    ),
    image_token_id=4000, video_token_id=4001, vision_start_token_id=4002,
)  # fmt: skip
SIZES = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "visual_cot_sizes.npz"
# Pictures at a fifth of their side, so that a step takes seconds on a CPU; texts and boxes as they are.
EXAMPLES, PACK, SCALE, TEXTS = 16, 4, 1 / 5, ("prompt_tokens", "answer_tokens")
# Of a row. Longer rows would be fuller, and spend it on scores between examples that do not see each other.
BUDGET, WARM = Budget(tokens=528, windows=24), 4
FROZEN, COMPUTE = ("vision/.*",), {"dtype": "auto", "attention": "auto", "remat": "none"}


@functools.cache
def examples() -> list[Example]:
    """Visual-CoT as LVR sequences: sizes, boxes and numbers of text tokens are real, ids and pixels are drawn."""
    rng = np.random.default_rng(0)
    with np.load(SIZES) as file:
        rows = {key: file[key] for key in ("width", "height", "box", "prompt_tokens", "answer_tokens")}
    found = []
    for row in rng.permutation(len(rows["width"])):
        width, height = int(rows["width"][row]), int(rows["height"][row])
        box = rows["box"][row] / (width, height, width, height)
        if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            continue
        h, w = smart_resize(
            round(height * SCALE), round(width * SCALE), min_pixels=LVR_PIXELS[0] * SCALE**2,
            max_pixels=LVR_PIXELS[1] * SCALE**2,
        )  # fmt: skip
        grid = (1, h // PATCH, w // PATCH)
        found.append(_example(rng, grid, box_to_tokens(box, grid), *(int(rows[k][row]) for k in TEXTS)))
        if len(found) == EXAMPLES:
            return found


def _example(rng, grid, latents: np.ndarray, prompt: int, answer: int) -> Example:
    merged = int(np.prod(grid)) // 4
    parts = ((ROLE_TEXT, 15), (ROLE_IMAGE, merged), (ROLE_TEXT, prompt - 15), (ROLE_LATENT, 1 + len(latents)))
    role = np.concatenate([np.full(n, r, np.int8) for r, n in (*parts, (ROLE_ANSWER, 2 + answer))])
    slot = np.where(role == ROLE_IMAGE, np.cumsum(role == ROLE_IMAGE) - 1, -1).astype(np.int32)
    latent = (role == ROLE_LATENT) & (np.roll(role, 1) == ROLE_LATENT)
    slot[latent] = latents
    tokens = rng.integers(0, 3900, len(role)).astype(np.int32)
    tokens[role == ROLE_IMAGE] = CONFIG.image_token_id
    grids = np.array([grid], np.int32)
    return Example(
        id="", category="", tokens=tokens,
        positions=mrope_positions(tokens, grids, image_token_id=CONFIG.image_token_id)[0], vision_slot=slot,
        loss_mask=(role == ROLE_ANSWER) | ((role == ROLE_LATENT) & ~latent), stage=latent.astype(np.int8),
        group=latent.astype(np.int32), role=role, grids=grids,
        patches=rng.integers(0, 256, (4 * merged, 588)).astype(np.uint8),
    )  # fmt: skip


def write_checkpoint(folder: pathlib.Path) -> None:
    """Writes a random Hugging Face checkpoint of the benchmark's size."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        x = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            return 1 + 0.1 * x if "norm" in name or "ln_q" in name else 0.1 * x
        return x * np.float32(0.02 if "embed_tokens" in name else np.prod(shape[1:]) ** -0.5)

    save_file({name: draw(name, slot.hf_shape) for name, slot in slots(CONFIG).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))


def packed(geometry: Geometry) -> list[list[Example]]:
    """Rows as the pipeline fills them."""
    waiting, rows = list(examples()), []
    while waiting:
        chosen = fill_row([geometry.size(e) for e in waiting], BUDGET)
        rows.append([waiting[i] for i in chosen])
        waiting = [e for i, e in enumerate(waiting) if i not in chosen]
    return rows


class Ours:
    """One batch of packed rows."""

    def __init__(self, folder: pathlib.Path):
        config, params = load_hf(folder)
        geometry = Geometry()
        batch = collate(packed(geometry), BUDGET, geometry)
        compute = compute_of(COMPUTE, Objective(), False, jax.default_backend())
        optimizer, mesh = AdamW(peak=RATE, warmup_ratio=0.0), make_mesh({}, jax.devices()[:1])
        transformation = optimizer.transformation(STEPS)
        like = abstract_state(params, FROZEN, transformation, rules(config), mesh, jnp.float32)
        recipe = Recipe(
            graph=abstract_model(config)[0], objective=Objective(), compute=compute, transformation=transformation,
            rate=optimizer.rate(STEPS), reconstruction=Points(((0, LAMBDA),)), own=Points(((0, 0.0),)),
        )  # fmt: skip
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.state, self.mesh = start(params, like, transformation, FROZEN), mesh
        self.batch, self._step = jax.device_put(batch, where), compiled_step(recipe, like, where, mesh)
        self.padding = float((batch["segment"] == 0).mean())

    def step(self) -> float:
        with jax.set_mesh(self.mesh):
            self.state, metrics = self._step(self.state, self.batch)
        return float(jax.block_until_ready(metrics)["loss_total"])


class Torch:
    """The released training loop, without its Trainer."""

    def __init__(self, folder: pathlib.Path):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.torch = torch
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        self.model.model.visual.requires_grad_(False)
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in trained]
        groups = [
            {"params": [p for name, p in trained if not name.endswith("bias")], "weight_decay": 0.1},
            {"params": [p for name, p in trained if name.endswith("bias")], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
        every = examples()
        self.tokens, self.latents = (sum(int(f(e).sum()) for e in every) for f in (_predicted, _latents))
        self.packs = [_Pack(torch, every[i : i + PACK]) for i in range(0, len(every), PACK)]
        self.padding = 1 - sum(int(p.mask.sum()) for p in self.packs) / sum(p.mask.numel() for p in self.packs)

    def step(self) -> float:
        """Accumulates over packs, as the released code does on one device; sums are divided by the whole step's
        counts, so that the loss is ours."""
        loss = 0.0
        for pack in self.packs:
            part = self._loss(pack)
            part.backward()
            loss += float(part.detach())
        self.torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _loss(self, pack):
        torch, model = self.torch, self.model.model
        with torch.no_grad():
            seen = model.get_image_features(pack.pixels, pack.grids)
        seen = getattr(seen, "pooler_output", seen)
        seen = torch.cat(list(seen)) if isinstance(seen, list | tuple) else seen
        x = model.get_input_embeddings()(pack.ids)
        x = x.masked_scatter(pack.image[..., None], seen)
        targets = seen[pack.sources]
        x = x.masked_scatter(pack.latent[..., None], targets)
        hidden = model.language_model(
            inputs_embeds=x, attention_mask=pack.mask, position_ids=pack.positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden)[:, :-1].float()
        cross_entropy = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), pack.labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
        )
        predicted = hidden[:, :-1][pack.latent[:, 1:]]
        error = torch.nn.functional.mse_loss(predicted.float(), targets.float(), reduction="sum") / targets.shape[-1]
        return cross_entropy / self.tokens + LAMBDA * error / self.latents


def _predicted(e: Example) -> np.ndarray:
    return e.loss_mask


def _latents(e: Example) -> np.ndarray:
    return e.stage > 0


class _Pack:
    """Up to four examples, right-padded to the longest."""

    def __init__(self, torch, rows: list[Example]):
        T = max(len(e.tokens) for e in rows)
        pad = lambda x, fill=0: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, T - x.shape[-1])], constant_values=fill)  # noqa: E731
        stack = lambda f: torch.tensor(np.stack([f(e) for e in rows]))  # noqa: E731
        self.ids = stack(lambda e: pad(e.tokens)).long()
        self.mask = stack(lambda e: pad(np.ones(len(e.tokens), np.int64)))
        self.positions = stack(lambda e: pad(e.positions)).long().transpose(0, 1)
        self.labels = stack(lambda e: pad(np.where(e.loss_mask, e.tokens, -100), -100)).long()
        offsets = np.cumsum([0] + [int(e.grids.prod()) // 4 for e in rows])
        self.image = self.ids == CONFIG.image_token_id
        self.latent = stack(lambda e: pad(e.stage > 0))
        self.sources = torch.tensor(
            np.concatenate([e.vision_slot[e.stage > 0] + offset for e, offset in zip(rows, offsets)])
        ).long()
        pixels = [np.asarray(normalise(e.patches)).reshape(-1, 3, 1, 196) for e in rows]
        self.pixels = torch.tensor(np.concatenate([np.repeat(x, 2, 2).reshape(len(x), -1) for x in pixels]))
        self.grids = torch.tensor(np.concatenate([e.grids for e in rows])).long()


def _clocks() -> np.ndarray:
    """Seconds on the wall, and of processors: the second says more where others use the machine too."""
    return np.array([time.perf_counter(), time.process_time()])


def run() -> dict:
    """What `measured` finds in a process of its own."""
    from study.workers import KEPT_MEMORY

    return measured_alone(__file__, **KEPT_MEMORY)


def measured(rounds: int = 7) -> dict:
    """Medians of interleaved steps; every one is a training step, and their losses are compared one by one."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        write_checkpoint(folder)
        sides = {"ours": Ours(folder), "torch": Torch(folder)}
        compilation = time.perf_counter()
        losses = {"ours": [sides["ours"].step()], "torch": []}
        compilation = time.perf_counter() - compilation
        losses["torch"].append(sides["torch"].step())
        for name, side in sides.items():
            losses[name] += [side.step() for _ in range(WARM - 1)]
        times = {name: [] for name in sides}
        with watched() as load:
            for _ in range(rounds):
                for name, side in sides.items():
                    before = _clocks()
                    losses[name].append(side.step())
                    times[name].append(_clocks() - before)
    gap = max(abs(a - b) / abs(b) for a, b in zip(losses["ours"][:3], losses["torch"][:3]))
    if gap > 1e-4:
        raise RuntimeError(f"train_torch: losses differ by {gap:.1e}: {losses['ours'][:3]} and {losses['torch'][:3]}")
    (seconds, processor), (baseline, baseline_processor) = (np.median(times[name], 0) for name in ("ours", "torch"))
    tokens, ratio = sum(len(e.tokens) for e in examples()), float(baseline / seconds)
    by_round = np.array(times["torch"]) / np.array(times["ours"])
    return {
        "name": "train_torch", "ratio": ratio, "goal": GOAL, "holds": bool(ratio >= GOAL),
        "seconds": float(seconds), "baseline_seconds": float(baseline),
        "details": {
            "what": f"LVR step of {len(examples())} examples, {tokens} tokens, fp32, "
            f"{sum(int(np.prod(s.hf_shape)) for s in slots(CONFIG).values()) / 1e6:.0f} M parameters",
            "tokens_per_second": tokens / float(seconds), "torch_tokens_per_second": tokens / float(baseline),
            **load, "ratios_by_round": by_round[:, 0].tolist(),
            "ratio_of_processor_seconds": float(baseline_processor / processor),
            "largest_loss_difference": gap, "first_step_with_compilation": compilation,
            "padding": sides["ours"].padding, "torch_padding": sides["torch"].padding,
            "torch_threads": sides["torch"].torch.get_num_threads(), "rounds": rounds,
            "device": jax.devices()[0].device_kind,
        },
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measured()))
