"""PRISM: is the latent used, where is the answer decodable, what do the latents look like?

One or several checkpoints (Hugging Face or Orbax, any latent system), one benchmark:

    python tools/prism.py --config configs/prism.py --config.checkpoint=lvr_3b,n_lvr_3b --config.benchmark=vstar \\
        --config.folder=data/vstar --workdir runs/prism

Nothing to download (generated pictures): --config.benchmark=digit_search --config.options="size=200, options=4".

Cost: prompts are computed three times (capture, and two phases of the sweep); each further condition recomputes only
latents and answer. The argument `paper` gives the paper's protocol and its five conditions alone: `prism.py:paper`.
"""

import ml_collections

# What replaces or removes the latents' content, a sham, oracles where items have boxes, and who may see whom.
EVERYTHING = (
    "zero,norm_matched,distribution_matched,donor,donor_same_label,donor_other_label,self,permuted,first_repeat,mean,"
    "slot_embedding,oracle,wrong_box,markers_only,answer_blind_to_latents,latents_blind_to_image"
)


def get_config(which: str = ""):
    if which not in ("", "paper"):
        raise ValueError(f"configs/prism.py:{which}: expected no argument, or `paper`")
    config = ml_collections.ConfigDict()
    config.checkpoint = ""              # folders, comma between them
    config.names = ""                   # how the report calls them; default: the folders' names
    config.variants = ""                # "lvr,lvr,n_lvr": which checkpoints are training seeds of one; default: none
    config.system = ""                  # latent system; default: what config.json and tokenizer say
    config.benchmark = "vstar"
    config.folder = ""                  # where the benchmark was downloaded to
    config.options = ""                 # of its reader, such as "size=200, options=4"
    config.limit = 0                    # only the first so many items; 0: all
    config.any_count = False            # accept another number of questions than published
    config.protocol = which or "clean"
    config.switches = ""                # of the protocol, such as "max_new_tokens=64"
    config.force_latents = False        # end the prompt with the start marker: every item opens a block
    config.budget = 0                   # latents a block; 0: the protocol's
    config.rows = 8                     # items a batch
    config.programs = 4                 # prompt sizes that are compiled
    # This host's devices: items over data, weights that one device cannot hold over tensor.
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.dtype = ""                   # default: bfloat16 on accelerators, float32 on a CPU
    config.seed = 0
    config.conditions = ml_collections.ConfigDict({
        "names": "zero,donor_paper" if which else EVERYTHING,
        "sigmas": (0.1, 0.3, 1.0),      # absolute noise, raw units
        "alphas": () if which else (0.1, 0.3, 1.0),         # relative: share of the latent's norm
        "budgets": (),                  # latents a block
        "per_latent": "" if which else "zero,step_mean",    # on one latent at a time
        "chunk": 0,                     # conditions at a time; 0: as many as fit
        "memory": 4e9,                  # bytes a device may spend on them
    })  # fmt: skip
    config.capture = ml_collections.ConfigDict({"layers": "last"})      # or "all"
    config.probes = ml_collections.ConfigDict({"controls": 20, "control": "marginal", "ladder": (1, 4, 16, 64)})
    config.alignment = ml_collections.ConfigDict({"count": 200, "latents": 64, "template": ""})
    config.sensitivity = ml_collections.ConfigDict({"count": 64})
    config.attention = "clean,zero" if which else "clean,zero,donor"
    config.gallery = 6
    config.level = 0.95
    config.draws = 10_000               # bootstrap resamples
    config.report = True                # False: audit only; a later run of several checkpoints writes the report
    return config
