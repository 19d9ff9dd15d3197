"""Gives the ids that a checkpoint's own tokenizer has for text and for the special tokens of latent reasoning.

Torch-free: a `tokenizer.json` is enough. Ids always come from the tokenizer and are checked against config.json, never
from a table, and never by a token's "special" flag (some releases rewrite it).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping

import numpy as np
import tokenizers

from lvr_jax.data.sample import DataError
from lvr_jax.files.json_io import JsonError, kind, read_object
from lvr_jax.files.names import packaged

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"

# Official order of addition: with Qwen2.5-VL's 151,665 entries the first becomes id 151665, and so on.
LVR_TOKENS = ("<|lvr_start|>", "<|lvr|>", "<|lvr_latent_end|>", "<|lvr_end|>")
P_LVR_TOKENS = (
    "<|ctx_start|>",
    "<|ctx_end|>",
    "<|free_start|>",
    "<|free_end|>",
    "<|tgt_start|>",
    "<|tgt_end|>",
    "<|free|>",
)

# The field of config.json that must hold a token's id, where the config has that field.
CONFIG_FIELDS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": VIDEO_PAD,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    **{f"{token[2:-2]}_id": token for token in (*LVR_TOKENS, *P_LVR_TOKENS)},       # lvr_start_id, lvr_id, ctx_end_id
}


class TokenizerError(DataError):
    """A tokenizer that cannot be read, lacks a token or disagrees with its checkpoint's config."""


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTokenizer:
    """A checkpoint's tokenizer and chat template; `source` is where they came from, for error messages.

    `chat_template` is the checkpoint's Jinja template, or None for the plain ChatML layout of Qwen.
    """

    backend: tokenizers.Tokenizer
    chat_template: str | None
    source: str

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> np.ndarray:
        """Text -> int32 [T]; special tokens written in the text become their ids, nothing is added around them."""
        return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def id(self, token: str) -> int:
        """The id of one token, by its exact text. Raises TokenizerError if there is none."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"tokenizer {self.source}: no token {token!r} (add_latent_tokens adds those of LVR)")
        return found


def _read_json(path) -> dict:
    try:
        return read_object(path)
    except JsonError as error:
        raise TokenizerError(str(error)) from error


def _chat_template(folder) -> str | None:
    """The template of a checkpoint folder: the newer file names first, as transformers looks them up."""
    plain = folder / "chat_template.jinja"
    if plain.exists():
        try:
            return plain.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{os.fspath(plain)}: not UTF-8 text (byte {error.start})") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            template = _default_template(_read_json(folder / name).get("chat_template"), os.fspath(folder / name))
            if template:
                return template
    return None


def _default_template(value, where: str) -> str | None:
    """The template among the forms that transformers writes: text, or a list of named templates."""
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)
                 and isinstance(entry.get("template"), str)]
        if len(named) < len(value):
            raise TokenizerError(f"{where}: chat_template is a list that holds something else than objects with the "
                                 "texts name and template")
        return {entry["name"]: entry["template"] for entry in named}.get("default")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{where}: chat_template is {kind(value)}, expected text or a list of named templates")
    return value


def load_tokenizer(folder: str | os.PathLike) -> ChatTokenizer:
    """Reads the tokenizer of a checkpoint folder (local or gs://), or a tokenizer.json given by its own path.

    Needs `tokenizer.json`; a local folder with only `vocab.json` and `merges.txt` is read through transformers.
    Raises TokenizerError naming the folder if there is no tokenizer or it cannot be read.
    """
    from etils import epath

    path = epath.Path(packaged(folder))
    if path.suffix == ".json":
        file, folder_path = path, path.parent
    else:
        file, folder_path = path / "tokenizer.json", path
    try:
        if file.exists():
            text = file.read_text()
            if text.startswith("version https://git-lfs"):
                raise TokenizerError(f"{os.fspath(file)}: is a Git LFS pointer, not the file; fetch it (git lfs pull)")
            backend = tokenizers.Tokenizer.from_str(text)
        elif (folder_path / "vocab.json").exists() and (folder_path / "merges.txt").exists():
            from transformers import AutoTokenizer

            backend = AutoTokenizer.from_pretrained(os.fspath(folder_path)).backend_tokenizer
        else:
            raise TokenizerError(f"{os.fspath(folder_path)}: no tokenizer.json, and no vocab.json with merges.txt")
    except TokenizerError:
        raise
    # tokenizers raises plain Exception for a broken file
    except Exception as error:
        raise TokenizerError(f"{os.fspath(file)}: cannot be read as a tokenizer ({error})") from error
    return ChatTokenizer(backend, _chat_template(folder_path), os.fspath(folder))


def add_latent_tokens(
    tokenizer: ChatTokenizer, tokens: Iterable[str] = (*LVR_TOKENS, *P_LVR_TOKENS)
) -> ChatTokenizer:
    """A copy with the given special tokens added one by one at the end; those that exist already keep their ids."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    for token in tokens:
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
    return dataclasses.replace(tokenizer, backend=backend)


def check_config(tokenizer: ChatTokenizer, config: Mapping, where: str = "config.json") -> None:
    """Compares the token ids of a checkpoint's config with its tokenizer's, and the vocabulary's size with its rows.

    Fields that the config lacks (or has as None) are not asked for. Raises TokenizerError naming field, both ids and
    both sources.
    """
    for field, token in CONFIG_FIELDS.items():
        expected = config.get(field)
        if expected is None:
            continue
        found = tokenizer.backend.token_to_id(token)
        if found != expected:
            raise TokenizerError(
                f"{where}: {field} is {expected}, but tokenizer {tokenizer.source} gives {token!r} "
                f"{'no id' if found is None else f'id {found}'}"
            )
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if rows is not None and len(tokenizer) > rows:
        raise TokenizerError(
            f"{where}: vocab_size is {rows}, but tokenizer {tokenizer.source} has {len(tokenizer)} entries"
        )
