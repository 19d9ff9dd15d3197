"""What the checkpoint tests run on: small folders of every kind, written by the safetensors library itself, with random
bits as weights.
"""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lvr_jax import checkpoints
from lvr_jax.models.families import leaves, slots
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
SIDE_FILES = {
    "generation_config.json": b'{"temperature": 1e-06}\n',
    "preprocessor_config.json": b'{ "min_pixels":3136 }',
    "chat_template.json": b"{}",
    "vocab.json": "{\"\u0120a\": 0}".encode(),
    "merges.txt": b"#version: 0.2\r\n",
    "added_tokens.json": b"{}",
    "special_tokens_map.json": b"{}\n\n",
    "README.md": b"# a model\n",
    "additional_chat_templates/tool.jinja": b"{{ messages }}",
}


def tiny(**changes) -> Config:
    """Changes: vocab, tied, latent_head, latent_end_embedding."""
    text = {key: changes.pop(key) for key in ("vocab", "tied", "layers") if key in changes}
    return Config(
        vision=VisionConfig(depth=2, hidden=16, intermediate=12, heads=2, out_hidden=24, full_attention_layers=(1,)),
        text=TextConfig(
            **{"vocab": 40, "layers": 3, "tied": False, **text}, hidden=24, intermediate=20, heads=4, kv_heads=2,
            head_width=6, mrope_section=(1, 1, 1),
        ),
        image_token_id=31, video_token_id=32, vision_start_token_id=30, **changes,
    )  # fmt: skip


def random_bits(shape, dtype, seed: int) -> np.ndarray:
    """Any pattern of bits, NaNs with payloads included: what a conversion "bit for bit" must keep."""
    rng = np.random.default_rng([seed, *shape])
    dtype = np.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def finite_bits(shape, dtype, seed: int) -> np.ndarray:
    """Any pattern of bits but NaN and infinity, which are refused where weights are loaded."""
    bits = random_bits(shape, dtype, seed).view(f"u{np.dtype(dtype).itemsize}").copy()
    top = np.array(np.inf, dtype).view(bits.dtype)
    bits[(bits & top) == top] ^= top
    return bits.view(dtype)


def small(shape, dtype, seed: int) -> np.ndarray:
    """Normal numbers of the size of weights."""
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def newer(name: str) -> str:
    """The name that transformers writes from 4.52 on."""
    name = re.sub(r"^model\.", "model.language_model.", name)
    return re.sub(r"^visual\.", "model.visual.", name)


def tensors_of(config: Config, dtype="bfloat16", draw=finite_bits) -> dict[str, np.ndarray]:
    return {
        name: draw(slot.hf_shape, DTYPES[dtype(name) if callable(dtype) else dtype], seed)
        for seed, (name, slot) in enumerate(slots(config).items())
    }


def write_folder(
    folder: Path, config: Config, tensors: dict[str, np.ndarray], *, shards: int = 1, rename=lambda name: name,
    fields: dict | None = None,
) -> Path:  # fmt: skip
    """A folder as the hub has it, with files around the weights."""
    for name, content in SIDE_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), **(fields or {})}, indent=1))
    names = sorted(tensors, key=lambda name: name[::-1])       # layers of one parameter spread over shards
    if shards == 1:
        files = {"model.safetensors": names}
    else:
        files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
        weight_map = {rename(name): file for file, held in files.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, held in files.items():
        save_file({rename(name): tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def arrays_of(folder: Path) -> dict[str, bytes]:
    """Every file of the stored arrays; Orbax's own notes beside them carry times and names of folders."""
    notes = ("_", "commit_success")
    return {name: x for name, x in files_of(folder / "params").items() if not name.startswith(notes)}


def bits(x) -> np.ndarray:
    x = np.ascontiguousarray(x)
    return x.view(np.uint8)


def by_hand(config: Config, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        path: np.stack([slot.from_hf(tensors[name]) for name, slot in members])
        if members[0][1].layer is not None
        else members[0][1].from_hf(tensors[members[0][0]])
        for path, members in leaves(config).items()
    }


def assert_survives(source: Path, place: Path) -> None:
    checkpoints.to_flax(source, place / "flax", verify=True)
    checkpoints.to_hf(place / "flax", place / "again", verify=True)
    assert files_of(source) == files_of(place / "again")


def assert_nothing_left(place: Path, *expected: str) -> None:
    assert sorted(path.name for path in place.iterdir()) == sorted(expected)


def mixed(name: str) -> str:
    return "float32" if "norm" in name else "bfloat16"
