"""Settings that all experiments share: Sec. 4.1 of "Cosine Misleads", its released code, and how to run it here.

Not an experiment: `configs/lvr.py` and the others state what differs. The argument is a size: `3b` to `72b` train
published checkpoints on Visual-CoT, `tiny` a network of a million parameters on digit search scenes, on a laptop.
"""

from ml_collections import ConfigDict

from lvr_jax.data.images import LVR_PIXELS

SIZES = ("3b", "7b", "32b", "72b", "tiny")


def get_config(size: str = "3b", name: str = "common") -> ConfigDict:
    """The baseline, LVR: one latent block, mean squared error with weight 0.1, teacher forcing."""
    size = size or "3b"
    if size not in SIZES:
        raise ValueError(f"config argument {size!r}, expected one of {', '.join(SIZES)}")
    c = ConfigDict()
    c.name = name
    c.seed = 42
    c.steps = 2500
    c.rows = 64                     # packs a step, over all devices
    c.accumulate = 1                # micro-batches a step; changes memory and time, not the result
    c.shards = 0                    # of the data; 0: as few as hosts can read whole. Fixed: equal batches on any hosts
    c.mask_boxes = False            # control: the model's input without the boxes
    c.synthetic = False             # one made-up batch instead of data: how fast is the device alone?
    c.model = size                  # shapes of a random network, where init.checkpoint names none
    c.latent_head = ""              # simple or glu: a new one, drawn; "": what the checkpoint has
    c.init = ConfigDict({
        "checkpoint": f"checkpoints/Qwen2.5-VL-{size.upper()}-Instruct",     # a folder of Hugging Face, or of ours
        "fork_from": "",            # workdir of another run: go on from its state, optimizer and place in the data
        "fork_at": 0.0,             # which state of it: share of the run
        "fork_data": True,
    })  # fmt: skip
    c.frozen = ("vision/.*",)       # tower and merger
    # remat: what the backward pass keeps. "auto" keeps splash's results, 2.3 GiB of a row of 3B and 3.1 of 7B, so that
    # attention is not computed twice, and projections where a chip has 95 GB (2026-11).
    c.compute = ConfigDict({
        "dtype": "auto", "attention": "auto", "remat": "auto" if size in ("3b", "7b") else "block",
    })  # fmt: skip
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.sharding = ()                 # rules (regex of a path, mesh axes); (): those of the network's family
    c.objective = ConfigDict({
        "distance": "mse", "normalisation": "per_token", "stage_weights": (1.0,), "diversity": 0.0, "noise": 0.0,
        "target": "own", "route": "both", "attention": "full", "feedback": "teacher",
        "chunk": 1024 if size == "3b" else 256,     # tokens of a chip whose logits are held at once
    })  # fmt: skip
    # By share of the run (0 to 1): lambda, and the probability that a latent is the model's own.
    c.reconstruction = ConfigDict({"points": ((0.0, 0.1),), "between": "hold"})
    c.own = ConfigDict({"points": ((0.0, 0.0),), "between": "linear"})
    c.alignment = ConfigDict({"text": (), "latents": ()})       # sizes of a row's parts, for own latents
    # Sizes of a row's parts where questions share a picture: what they share, then `count` branches of `each`.
    c.branches = ConfigDict({"shared": 0, "each": 0, "count": 1})
    c.optimizer = ConfigDict({
        "peak": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "decay_rule": "official",
        "warmup_ratio": 0.03, "clip": 1.0,
    })  # fmt: skip
    c.data = ConfigDict({
        "tokenizer": "",            # the checkpoint's own
        "sources": {"stage1": {"kind": "lvr_meta", "path": "data/meta_data_lvr_sft_stage1.json",
                               "box_policy": "keep", "check_images": False}},
        "template": "lvr", "answer_format": "tagged", "check_boxes": False,
        "min_pixels": LVR_PIXELS[0], "max_pixels": LVR_PIXELS[1],
        # A pack: at most four examples, as in the paper, which fill 0.88 of the tokens of Visual-CoT where full packs
        # (max_per_row=0) fill 0.98: 12 % more rows for the same examples (`tools/bench.py packing`). With another limit
        # a step holds other examples. Four times 4,096 tokens; windows are tokens / 16 and an eighth for edges.
        "tokens": 16384, "windows": 1152, "pooled": 0, "max_per_row": 4,
        "lookahead": 32, "workers": 8, "prefetch": 2, "max_skip_share": 0.05,
    })  # fmt: skip
    c.system = ConfigDict({"name": "lvr", "budget": 8})      # how held-out replies are decoded: latents a block
    c.held_out = ConfigDict({"every": 250, "examples": 64, "sources": {}, "max_new_tokens": 64})
    # minutes: between checkpoints, whatever the step; a spot machine is taken away within seconds.
    c.checkpoint = ConfigDict({"every": 500, "minutes": 15.0, "keep": 0, "keep_every": 0, "export": True})
    c.export = ConfigDict({"dtype": "bfloat16"})             # "keep": trained parameters in fp32, as they are
    c.hang_minutes = 30.0                                    # without a step: stacks are written and the run ends
    c.log = ConfigDict({"every": 10, "tensorboard": True, "progress": True})
    c.profile = ConfigDict({"start": 10, "steps": 0})        # a trace of so many steps, on all hosts
    c.compilation_cache = "auto"     # WORKDIR/compilation on gs://, which all hosts share; else the user's own
    return _tiny(c) if size == "tiny" else c


def align(c: ConfigDict, size: str) -> ConfigDict:
    """Rows for own latents: one example, its eight latents at the same place in each."""
    small = size == "tiny"
    c.alignment.text, c.alignment.latents = ((112, 40) if small else (6144, 248)), (8,)
    c.data.tokens, c.data.windows = (160, 1) if small else (6400, 400)
    c.data.pooled = c.data.pooled // 4
    c.data.max_per_row = 1
    c.rows = 32 if small else 192           # about as many examples as in packs of four
    c.data.max_skip_share = 0.25            # examples with several boxes do not fit
    return c


def _tiny(c: ConfigDict) -> ConfigDict:
    """The same experiment at a size that 300 steps of 32 questions teach on one core in three minutes."""
    c.steps = 300
    c.rows = 16                     # of two questions each: the longest two have room, in every variant
    c.init.checkpoint = "lvr_jax/assets/tiny"
    c.compute.remat = "none"
    c.objective.chunk = 4096        # all rows of a step at once
    c.optimizer.peak, c.optimizer.betas = 2e-3, (0.9, 0.99)      # of so few steps, 0.999 would remember all
    c.data.sources = {"digits": {"kind": "digit_search", "size": 100_000, "split": "train", "mask_box": False,
                                 "mask_share": 1.0, "questions": 1}}
    c.data.answer_format = "word_then_letter"
    c.data.check_boxes = True
    c.data.min_pixels, c.data.max_pixels = 784, 112 * 112
    c.data.tokens, c.data.windows, c.data.max_per_row = 160, 2, 2
    c.data.workers = 0
    c.system.budget = 4
    c.held_out.update({"every": 75, "examples": 64, "max_new_tokens": 32})
    c.held_out.sources = {"digits": {"kind": "digit_search", "size": 64, "split": "test", "mask_box": False,
                                     "mask_share": 1.0}}
    c.checkpoint.every = 60
    c.export.dtype = "keep"
    return c
