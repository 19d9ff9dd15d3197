"""Compares the network with the reference's, stage by stage: cases A1 to A5.

The patch embedding is checked by itself; everything after it starts from the reference's rounding of it (see
`golden.case.reference_patch_embedding`). Every stage agrees to 2e-5 from the recorded input of that stage; the whole
chain from pixels to logits, through which rounding grows in these small networks, to 5e-5.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from golden.case import Case, Check, equal, relative
from lvr_jax.models.layers import Compute, scan_blocks
from lvr_jax.models.layout import vision_layout
from lvr_jax.models.qwen2_5_vl.rope import vision_table
from lvr_jax.models.records import Images, Tokens

TOLERANCE, CHAIN = 2e-5, 5e-5


def layout_checks(case: Case) -> Iterator[Check]:
    """Window order and rotary ids against the reference's arrays."""
    c = case.model.config.vision
    layout = vision_layout(case["image_grid_thw"], merge=c.merge, window=c.window)
    if "window_index" in case:
        yield equal("window_index", np.argsort(layout.merged_slot), case["window_index"])
    if "cu_window_seqlens" in case:
        filled = np.cumsum(np.concatenate([[0], (layout.segments > 0).sum(1)]))
        yield equal("cu_window_seqlens", filled, case["cu_window_seqlens"])
    if "vis_rotary_pos_emb" in case:
        frequencies = 1e4 ** -(np.arange(0, c.head_width // 2, 2) / (c.head_width // 2))
        ids = layout.rotary_ids.reshape(-1, 2)[layout.patch_slot]
        yield relative("vis_rotary_pos_emb", (ids[..., None] * frequencies).reshape(len(ids), -1),
                       case["vis_rotary_pos_emb"], TOLERANCE)  # fmt: skip


def tower_checks(case: Case) -> Iterator[Check]:
    """Patch embedding, each block fed the recorded output of the one before, the merger, and the tower as a whole."""
    model, c = case.own_model.bound, case.own_model.config.vision
    grids = case["video_grid_thw" if "video_grid_thw" in case else "image_grid_thw"]
    pixels = case["pixel_values_videos" if "video_grid_thw" in case else "pixel_values"]
    layout = vision_layout(grids, merge=c.merge, window=c.window)
    images = Images(layout.place(pixels)[None], layout.segments[None], layout.rotary_ids[None])
    merged, _ = model.encode(images)
    if "image_embeds" in case:
        yield relative("image_embeds, own rounding", merged[0][layout.merged_slot], case["image_embeds"], TOLERANCE)
    if "vis_patch_embed" not in case:
        return
    filled = layout.segments.reshape(-1) > 0
    embedded = np.asarray(model.vision.embed(images.patches)).reshape(len(filled), -1)
    yield relative("vis_patch_embed", embedded[layout.patch_slot], case["vis_patch_embed"], TOLERANCE)

    def in_windows(recorded, order):  # [P, D] -> [1, W, S, D]
        placed = np.zeros((len(filled), recorded.shape[-1]), np.float32)
        placed[order] = recorded
        return jnp.asarray(placed.reshape(1, *layout.segments.shape, -1))

    table = vision_table(images.rotary_ids, c.head_width)
    before = in_windows(case["vis_patch_embed"], layout.patch_slot)
    for i in range(c.depth):
        # One block of the stack, run through the same scan as the whole tower.
        one = jax.tree.map(lambda p, i=i: p[i : i + 1], model.vision.blocks)
        step = lambda block, x, full: (block(x, full, images.segment, table, Compute()), None)  # noqa: E731
        full = jnp.array([i in c.full_attention_layers])
        after, _ = scan_blocks(one, step, before, full, Compute())
        recorded = case[f"vis_block{i}_out"]
        yield relative(f"vis_block{i}_out", np.asarray(after).reshape(len(filled), -1)[filled], recorded, TOLERANCE)
        before = in_windows(recorded, np.flatnonzero(filled))
    yield relative("merger", model.vision.merger(before)[0][layout.merged_slot], case["image_embeds"], TOLERANCE)


def decoder_checks(case: Case) -> Iterator[Check]:
    """M-RoPE ids, states and logits: from the recorded image embeddings (a stage) and from pixels (the chain)."""
    model = case.model.bound
    examples, mask = case.rows(), case["attention_mask"].astype(bool)
    T = mask.shape[1]
    positions = np.ones((len(examples), 3, T), np.int64)
    for row, (example, real) in enumerate(zip(examples, mask)):
        positions[row][:, real] = example.positions
    recorded = np.moveaxis(case["position_ids"], 0, 1)
    yield equal("position_ids", positions, np.where(mask[:, None], recorded, 1))
    after = np.array([example.positions.max() + 1 for example in examples])
    yield equal("rope_deltas", after - T, case["rope_deltas"][:, 0])

    batch = case.batch(examples)
    merged, _ = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]))
    if "image_embeds" in case:
        ours = np.concatenate([m[s[s >= 0]] for m, s in zip(np.asarray(merged), batch["vision_slot"])])
        yield relative("image_embeds", ours, case["image_embeds"], TOLERANCE)
    ways = [("from pixels", merged, CHAIN)]
    if "image_embeds" in case:
        fed, first = np.zeros(merged.shape, np.float32), 0
        for row, example in enumerate(examples):
            count = int((example.vision_slot >= 0).sum())
            slots = batch["vision_slot"][row][batch["vision_slot"][row] >= 0]
            fed[row][slots] = case["image_embeds"][first : first + count]
            first += count
        ways.append(("from image_embeds", jnp.asarray(fed), TOLERANCE))
    for way, vision, tolerance in ways:
        yield from _decode(case, batch, mask, vision, way, tolerance)


def _decode(case: Case, batch, mask, vision, way, tolerance) -> Iterator[Check]:
    model = case.model.bound
    # Back to the recorded padding, left or right: our rows may have theirs anywhere.
    at = [np.flatnonzero(real) for real in mask]

    def padded(x, empty=0):
        out = np.full((*x.shape[:-1], mask.shape[1]), empty, x.dtype)
        for row, places in enumerate(at):
            out[row][..., places] = x[row][..., : len(places)]
        return jnp.asarray(out)

    tokens, slot = padded(batch["tokens"]), padded(batch["vision_slot"], -1)
    x = model.embed(tokens, slot, vision)
    hidden, _, out = model.decode(
        x, Tokens(padded(batch["positions"]), padded(batch["segment"])), taps=("states",)
    )
    states = np.asarray(out["states"])
    recorded = case["hidden_states"]
    mine = [*states[:-1], hidden] if len(recorded) == len(states) else [states[0], hidden]
    for i, (ours, theirs) in enumerate(zip(mine, recorded)):
        yield relative(f"hidden_states[{i}] {way}", np.asarray(ours)[mask], theirs[mask], tolerance)
    logits, T = np.asarray(model.text.logits(hidden)), mask.shape[1]
    count = case["logits"].shape[1]
    # Some files keep every fourth position, some the last four, some all.
    kept = np.arange(T) if count == T else np.arange(T)[-4:] if count == 4 else np.arange(0, T, 4)
    yield relative(f"logits {way}", logits[:, kept][mask[:, kept]], case["logits"][mask[:, kept]], tolerance)


def check(case: Case) -> Iterator[Check]:
    """Compares layout, tower and decoder, as far as the case recorded them."""
    if "image_grid_thw" in case:
        yield from layout_checks(case)
    yield from tower_checks(case)
    if "input_ids" in case:
        yield from decoder_checks(case)


CHECKERS = {kind: check for kind in ("A1", "A2", "A3", "A4", "A5")}
