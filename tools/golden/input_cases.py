"""Compares inputs with the reference's: cases A0 (pixels), B0 (boxes), and the token layout of B1 to B7."""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np

from golden.case import Case, Check, equal
from lvr_jax.data import boxes, images
from lvr_jax.data.chat import encode_example
from lvr_jax.data.sample import Sample
from lvr_jax.data.templates import LVR, P_LVR_2, P_LVR_3
from lvr_jax.models.qwen2_5_vl.vision import IMAGE_MEAN, IMAGE_STD, normalise

TEMPLATES = {"B5": P_LVR_2, "B6": P_LVR_3}
IGNORED = -100


def preprocessing(case: Case) -> Iterator[Check]:
    """Compares resizing and patches, bit by bit."""
    if "table" in case:
        for rule, columns in (("fetch", slice(4, 6)), ("processor", slice(6, 8))):
            ours = [
                images.smart_resize(h, w, min_pixels=least, max_pixels=most, rule=rule)
                for h, w, least, most in case["table"][:, :4].tolist()
            ]
            yield equal(f"smart_resize, rule {rule}", ours, case["table"][:, columns])
        return
    limits = case.meta["min_pixels"], case.meta["max_pixels"]
    image = images.prepare_image(case["image_uint8"], *limits, protocol="train")
    patches, grid = images.patchify(image)
    yield equal("resized_uint8", image, case["resized_uint8"])
    yield equal("image_grid_thw", [grid], case["image_grid_thw"])
    both = np.repeat(np.asarray(normalise(patches)).reshape(len(patches), 3, 1, 196), 2, axis=2)
    yield equal("pixel_values", both.reshape(len(patches), -1), case["pixel_values"])


def box_mapping(case: Case) -> Iterator[Check]:
    """Compares the tokens that boxes cover."""
    def flat(factor=None):
        wanted = case["boxes"] if factor is None else [boxes.expand(box, factor) for box in case["boxes"]]
        tokens = [boxes.box_to_tokens(box, grid) for box, grid in zip(wanted, case["grid_hw"])]
        return np.concatenate(tokens), [len(t) for t in tokens]

    for key, factor in (("token_idx", None), ("token_idx_expanded1.5", 1.5)):
        tokens, sizes = flat(factor)
        yield equal(f"{key}_sizes", sizes, case[f"{key}_sizes"])
        yield equal(f"{key}_flat", tokens, case[f"{key}_flat"])
    for factor in (1.5, 1.3):
        ours = [boxes.expand(box, factor) for box in case["boxes"]]
        yield equal(f"boxes_expanded{factor}", ours, case[f"boxes_expanded{factor}"])


def pictures(case: Case) -> list[np.ndarray]:
    """The pictures behind a case's pixels: uint8 [H, W, 3], sides multiples of 28."""
    values = case["pixel_values"].astype(np.float64).reshape(-1, 3, 2, 14, 14)[:, :, 0]
    mean, std = (np.array(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
    pixels = np.rint((values * std + mean) * 255).astype(np.uint8)
    found, start = [], 0
    for _, h, w in case["image_grid_thw"]:
        cut = pixels[start : start + h * w].reshape(h // 2, w // 2, 2, 2, 3, 14, 14)
        found.append(cut.transpose(0, 2, 5, 1, 3, 6, 4).reshape(14 * h, 14 * w, 3))
        start += h * w
    return found


def sequences(case: Case) -> Iterator[Check]:
    """Records, boxes and pictures through our own encoding: every token, position, label and latent source."""
    template = TEMPLATES.get(case.kind, LVR)
    if "no_latent_end" in case.name:
        template = dataclasses.replace(template, latent_end=None)
    tokens, positions, targets = (np.full_like(case["input_ids"], 0) for _ in range(3))
    positions = np.ones_like(case["position_ids"])
    sources, sizes = [], []
    slots = [case.tokenizer.id("<|lvr|>"), case.tokenizer.id("<|free|>")]
    for row, (record, picture) in enumerate(zip(json.loads(str(case["records_json"])), pictures(case))):
        question, reply = (turn["value"] for turn in record["conversations"])
        own = tuple(map(tuple, case["bboxes"][case["bbox_record_idx"] == row]))
        example = encode_example(
            Sample(str(row), (picture,), question, reply, boxes=own), case.tokenizer, template,
            min_pixels=784, max_pixels=10**6, answer_format="verbatim", check_boxes=False,
        )  # fmt: skip
        T = len(example.tokens)
        if T > tokens.shape[1]:
            yield Check(f"row {row} has {T} tokens, recorded {tokens.shape[1]}", np.inf, 0)
            return
        tokens[row, :T], positions[:, row, :T] = example.tokens, example.positions
        targets[row, :T] = example.loss_mask
        visual = (example.stage > 0) & (example.vision_slot >= 0)
        sources.append(example.vision_slot[visual])
        sizes += [n for n in np.bincount(example.group[visual]) if n]
    real = case["attention_mask"] == 1
    yield equal("layout: input_ids", np.where(real, tokens, 0), np.where(real, case["input_ids"], 0))
    recorded = np.where(real, case["position_ids"], 1)
    yield equal("layout: position_ids", np.where(real, positions, 1), recorded)
    supervised = (case["labels"] != IGNORED) & ~np.isin(case["input_ids"], slots)
    yield equal("layout: labels", targets.astype(bool), supervised)
    yield equal("layout: lvr_tokens_flat", np.concatenate(sources), case["lvr_tokens_flat"])
    yield equal("layout: lvr_group_sizes", sizes, case["lvr_group_sizes"][case["lvr_group_sizes"] > 0])


CHECKERS = {"A0": preprocessing, "B0": box_mapping}
