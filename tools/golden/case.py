"""A golden case: a recorded run of the official code with arrays, metadata, and the checkpoint it ran on."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx

from lvr_jax.checkpoints import load_hf
from lvr_jax.data.packing import Batch, Geometry, collate
from lvr_jax.data.sample import Example
from lvr_jax.data.tokenizers import ChatTokenizer, load_tokenizer
from lvr_jax.files.json_io import JsonError, parse_object
from lvr_jax.models.interface import Config
from lvr_jax.models.layout import mrope_positions


class CaseError(ValueError):
    """A case that cannot be read: an unknown kind, or a file that it refers to and that is not there."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: the largest absolute difference, relative to the array's scale unless said in `key`."""

    key: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return bool(self.difference <= self.tolerance)  # NaN is not


def relative(key: str, ours, recorded, tolerance: float, where=None) -> Check:
    """Largest difference over the recorded array's largest absolute value; `where` selects entries of axis 0."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return Check(f"{key} (shape {ours.shape}, recorded {recorded.shape})", np.inf, tolerance)
    if where is not None:
        ours, recorded = ours[where], recorded[where]
    if not ours.size:
        return Check(f"{key} (empty)", 0.0, tolerance)
    return Check(key, float(np.abs(ours - recorded).max() / max(np.abs(recorded).max(), 1e-30)), tolerance)


def equal(key: str, ours, recorded) -> Check:
    """Number of entries that differ; none may."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    if ours.shape != recorded.shape:
        return Check(f"{key} (shape {ours.shape}, recorded {recorded.shape})", np.inf, 0)
    return Check(f"{key} (entries)", float((ours != recorded).sum()), 0)


@dataclasses.dataclass(frozen=True)
class Model:
    """A golden checkpoint, loaded: config, graph and parameters (fp32)."""

    config: Config
    graph: nnx.GraphDef
    params: dict

    @property
    def bound(self) -> Any:
        return nnx.merge(self.graph, self.params)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.vision.merge, self.config.vision.window)


def reference_patch_embedding(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The patch embedding [P, D] with the rounding of the reference's fp32 convolution, found to be bit-identical.

    PyTorch's CPU convolution adds 1,176 fused multiply-adds one after the other, frame by frame, pixel by pixel,
    channel by channel, and so ends 1e-6 of the scale away from the exact sum. The networks of the golden cases blow
    that up to 5e-5 at the logits, so a comparison at 2e-5 has to start from the same rounding.
    pixels: [P, C * frames * 196]; kernel: our [C, frames, 196, D].
    """
    C, frames, area, D = kernel.shape
    x = pixels.reshape(-1, C, frames, area).transpose(2, 3, 1, 0).reshape(-1, len(pixels))         # [1176, P]
    w = np.asarray(kernel).transpose(1, 2, 0, 3).reshape(-1, D)                                    # [1176, D]
    total = np.zeros((len(pixels), D), np.float32)
    for xk, wk in zip(x.astype(np.float64), w.astype(np.float64)):
        total = (total + xk[:, None] * wk).astype(np.float32)
    return total


@functools.cache
def load_model(folder: pathlib.Path) -> Model:
    """Loads a golden checkpoint as a model."""
    from lvr_jax.models.families import abstract_model

    config, params = load_hf(folder)
    return Model(config, abstract_model(config)[0], params)


class Case:
    """One `.npz` of a golden folder; `self[key]` is an array, falling back on the case that `meta` refers to."""

    def __init__(self, path: pathlib.Path):
        self.path, self.name = path, path.stem
        self.kind = path.stem.split("_")[0]
        try:
            with np.load(path) as file:
                self.arrays = {key: file[key] for key in file.files}
        # NumPy and zipfile raise whatever a damaged file leads them to
        except Exception as error:
            raise CaseError(f"{path.name}: cannot be read as .npz ({' '.join(str(error).split())})") from error
        if "meta" not in self.arrays:
            raise CaseError(f"{path.name}: has no array meta, expected a JSON object as text")
        try:
            self.meta = parse_object(str(self.arrays.pop("meta")), f"{path.name}: meta")
        except JsonError as error:
            raise CaseError(str(error)) from error

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        if key in self.arrays:
            return self.arrays[key]
        for other in self._elsewhere():
            if key in other.arrays:
                return other.arrays[key]
        raise CaseError(f"{self.path.name}: no array {key!r}, neither here nor in the cases that it refers to")

    def get(self, key: str, default=None):
        return self.arrays.get(key, default)

    def _elsewhere(self) -> Iterator["Case"]:
        """The cases that hold what this one leaves out: named in `meta`, or of the same kind."""
        names = [self.meta[k] for k in ("pixel_values_from", "head_weights") if k in self.meta]
        names += re.findall(r"as ([A-Za-z0-9_.]+)", str(self.meta.get("inputs", "")))
        patterns = [name.removesuffix(".npz") + "*.npz" for name in names] + [f"{self.kind}_*.npz"]
        for pattern in patterns:
            for path in sorted(self.path.parent.glob(pattern)):
                if path != self.path:
                    yield Case(path)

    @property
    def tokenizer(self) -> ChatTokenizer:
        return load_tokenizer(self.path.parent.parent / "checkpoints" / "tokenizer.json")

    @property
    def own_model(self) -> Model:
        """The checkpoint as it is."""
        return load_model(self.path.parent.parent / "checkpoints" / self.meta["checkpoint"])

    @property
    def model(self) -> Model:
        """The checkpoint for patches that are embedded already (`rows`): its patch embedding is the identity."""
        own = self.own_model
        identity = np.eye(own.config.vision.hidden, dtype=np.float32)[None, None]
        vision = own.params["vision"] | {"patch_embed": identity}
        return dataclasses.replace(own, params=own.params | {"vision": vision})

    def rows(self, tokens: np.ndarray | None = None, mask: np.ndarray | None = None) -> list[Example]:
        """Every row of `input_ids` as an unpadded example with embedded patches, images in order of appearance."""
        tokens = self["input_ids"] if tokens is None else tokens
        mask = self["attention_mask"] if mask is None else mask
        tokens, mask = np.atleast_2d(tokens), np.atleast_2d(mask)
        c = self.model.config
        video = "video_grid_thw" in self
        grids = self["video_grid_thw" if video else "image_grid_thw"]
        pixels = self["pixel_values_videos" if video else "pixel_values"]
        patches = reference_patch_embedding(pixels, self.own_model.params["vision"]["patch_embed"])
        rows, image, patch = [], 0, 0
        for ids, real in zip(tokens, mask):
            ids = ids[real == 1].astype(np.int32)
            placeholder = (ids == c.image_token_id) | (ids == c.video_token_id)
            first, wanted = image, int(placeholder.sum()) * c.vision.merge**2
            while grids[first:image].prod(1).sum() < wanted:
                image += 1
            own = grids[first:image]
            count = int(own.prod(1).sum())
            rows.append(self._example(ids, placeholder, own, patches[patch : patch + count]))
            patch += count
        return rows

    def _example(self, ids, placeholder, grids, patches) -> Example:
        c = self.model.config
        positions, _ = mrope_positions(
            ids, grids, image_token_id=c.image_token_id, video_token_id=c.video_token_id, merge=c.vision.merge,
            tokens_per_second=c.vision.tokens_per_second, seconds_per_grid=self.get("second_per_grid_ts", ()),
        )  # fmt: skip
        slot = np.full(len(ids), -1, np.int32)
        slot[placeholder] = np.arange(placeholder.sum())
        nothing = np.zeros(len(ids), np.int32)
        return Example(
            id=self.name, category="", tokens=ids, positions=positions, vision_slot=slot,
            loss_mask=nothing.astype(bool), stage=nothing, group=nothing, role=placeholder.astype(np.int32),
            patches=patches, grids=grids,
        )  # fmt: skip

    def batch(self, examples: Sequence[Example]) -> Batch:
        """One example a row, in the smallest budget."""
        geometry = self.model.geometry
        rows = [[e] for e in examples]
        return collate(rows, geometry.smallest(rows), geometry)
