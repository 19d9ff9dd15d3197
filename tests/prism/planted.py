"""A checkpoint whose use of its latents is known by construction: one attention head, set by hand. And a set for it.

The picture is bright or dark. The start marker and the latents attend to the image and carry its brightness on; the
position that picks the letter attends to the latents, to the image, or to both. Everything else is a chain of tokens:
newline, start marker, latents, `<answer>`, letter, end. Strong noise breaks the chain: it is part of the stream.

    carrier  the letter is read from the latents alone: nothing else may see the image (latents.routing), as a head
             that finds no latents would look elsewhere
    ignored  the letter is read from the image alone
    partly   from both
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lvr_jax.checkpoints import save_params
from lvr_jax.data.tokenizers import load_tokenizer
from lvr_jax.latents.routing import FIELD
from lvr_jax.models.families import abstract_model
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
CONFIG = Config(
    vision=VisionConfig(
        depth=1, hidden=16, intermediate=16, heads=1, out_hidden=32, full_attention_layers=(0,), window_pixels=112,
        patch=14,
    ),
    # With so large a theta the last pair of a head, (3, 7), does not turn: scores do not depend on positions.
    text=TextConfig(
        vocab=512, hidden=32, intermediate=8, layers=1, heads=1, kv_heads=1, head_width=8, mrope_section=(1, 1, 2),
        rope_theta=1e12, tied=False,
    ),
    image_token_id=392, video_token_id=393, vision_start_token_id=389,
)  # fmt: skip
# Directions of the residual stream.
CONST, IS_IMAGE, BRIGHT, READ, IS_LATENT, TAG, ANY = 0, 1, 2, 5, 8, 9, 15
# Of the image, of the latents; with a little less of the latents, swapping them costs half of the edge over chance.
USES = {"carrier": (0.0, 1.0), "ignored": (1.0, 0.0), "partly": (1.0, 0.85)}


def plant(use: str, folder: Path) -> Path:
    """Writes the checkpoint as a folder of ours, tokenizer and preprocessor included."""
    tokenizer = load_tokenizer(GOLDEN / "tokenizer.json")
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), abstract_model(CONFIG)[1])
    text, vision = params["text"], params["vision"]
    for part, norms in ((text["blocks"], ("attention_norm", "mlp_norm")), (vision["blocks"], ("attention_norm",
                        "mlp_norm")), (text, ("norm",)), (vision["merger"], ("norm",))):  # fmt: skip
        for norm in norms:
            part[norm][...] = 1

    # Tower: mean brightness beside a constant, which the norm leaves in proportion; both halves of a GELU.
    vision["patch_embed"][..., BRIGHT] = 1 / vision["patch_embed"][..., 0].size
    vision["blocks"]["out_bias"][:, CONST] = 1.0
    for patch in range(4):
        vision["merger"]["inner"][16 * patch + BRIGHT, :2] = np.array([1, -1]) / 4
    vision["merger"]["out"][0, BRIGHT], vision["merger"]["out"][1, BRIGHT] = 1, -1
    vision["merger"]["out_bias"][IS_IMAGE] = 1.0

    # The head: keys say what they are, values carry the brightness that is seen or was read.
    image, latents = USES[use]
    strong = 1.5      # shares attention among the latents, and still drowns the text
    block = text["blocks"]
    block["k"][0, IS_IMAGE, 0, 3], block["k"][0, IS_LATENT, 0, 7] = 1, 1
    block["q"][0, IS_LATENT, 0, 3] = strong
    block["q"][0, TAG + 2, 0, 3], block["q"][0, TAG + 2, 0, 7] = strong * image, strong * latents
    block["v"][0, BRIGHT, 0, 0], block["v"][0, READ, 0, 0] = 1, 1
    block["out"][0, 0, 0, READ] = 0.1
    block["v_bias"][0, 0, 1], block["out"][0, 0, 1, ANY] = 1, 1

    # The chain: a token's embedding says which it is, the head which one follows.
    start, stop = tokenizer.id("<|lvr_start|>"), tokenizer.id("<|im_end|>")
    tag = tokenizer.encode("<answer>")                                        # three tokens
    dark, bright = (tokenizer.encode(f"<answer> {letter}")[len(tag)] for letter in "BA")     # a space, and " A"
    b = tokenizer.encode("<answer> B")[-1]
    newline = tokenizer.encode("\n")[0]
    text["embed"][:, CONST] = 0.5
    follows = [(newline, 20, start), (start, IS_LATENT, tag[0]), (tag[0], TAG, tag[1]), (tag[1], TAG + 1, tag[2]),
               (tag[2], TAG + 2, bright), (tag[2], TAG + 2, dark), (dark, 13, b), (bright, 14, stop), (b, 14, stop)]
    for token, direction, then in follows:
        text["embed"][token, direction] = 1.0
        text["head"][then, direction] += 8.0
    text["head"][bright, READ], text["head"][dark, READ] = 1.0, -1.0
    # Whatever a latent is replaced by, the tag begins after it: what a corruption changes is content, not format.
    text["head"][tag[0], ANY] = 4.0

    ids = {"lvr_start_id": start, "lvr_id": tokenizer.id("<|lvr|>"), "lvr_end_id": tokenizer.id("<|lvr_end|>"),
           "lvr_latent_end_id": tokenizer.id("<|lvr_latent_end|>"), "eos_token_id": stop}  # fmt: skip
    if use == "carrier":
        ids[FIELD] = "bottleneck"
    save_params(folder, params, CONFIG, fields=ids)
    shutil.copy(GOLDEN / "tokenizer.json", folder / "hf")
    (folder / "hf" / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 3136}))
    return folder


def benchmark(folder: Path, items: int, seed: int = 0, wrong: float = 0.1) -> Path:
    """A jsonl benchmark: is the picture bright (A) or dark (B)? A share of the gold letters is wrong on purpose."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(items):
        level = rng.choice([-1, 1]) * rng.uniform(15, 75)
        pixels = np.clip(118 + level + rng.normal(0, 6, (56, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        right = "A" if level > 0 else "B"
        letter = right if rng.random() >= wrong else "AB"[right == "A"]
        lines.append({"id": f"item{n}", "image": f"{n}.png", "question": "Is the picture bright or dark?",
                      "options": ["bright", "dark"], "answer": letter, "boxes": [[0, 0, 1, 1]],
                      "category": f"half{n % 2}"})  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "items.jsonl"
