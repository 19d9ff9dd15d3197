"""PRISM: whether the latent is used, where the answer is decodable, and what the latents look like.

One or several checkpoints (Hugging Face or Orbax, any latent system), one benchmark:

    python tools/prism.py --config configs/prism.py --config.checkpoint=lvr_3b,n_lvr_3b --config.benchmark=vstar \\
        --config.folder=data/vstar --workdir runs/prism

Nothing to download (generated pictures): --config.benchmark=digit_search --config.options="size=200, options=4".

Cost: a prompt is read once for all stages, as far as `conditions.memory` keeps it; each further condition recomputes
only latents and answer. With prompts of 1,000 vision tokens all of it takes three to four times as long as an
evaluation of the same items, `light` twice as long (tools/bench.py audit). The argument `paper` gives the paper's
protocol and its five conditions alone: `prism.py:paper`. `prism.py:light` is for many checkpoints: seven conditions
that tell whether the answer listens to what stands in the latents' place and whether own latents carry anything; no
attention, no sensitivity, no single latents.
"""

import ml_collections

# What replaces or removes the latents' content, a sham, oracles where items have boxes, and who may see whom.
EVERYTHING = (
    "zero,norm_matched,distribution_matched,donor,donor_directed,donor_same_content,self,permuted,first_repeat,mean,"
    "slot_embedding,oracle,wrong_box,box_budget,markers_only,start_only,answer_blind_to_latents,latents_blind_to_image"
)
LIGHT = "donor_directed,mean,answer_blind_to_latents,markers_only,oracle,wrong_box,zero"
NAMES = {"": EVERYTHING, "paper": "zero,donor_paper", "light": LIGHT}


def get_config(which: str = "") -> ml_collections.ConfigDict:
    if which not in NAMES:
        raise ValueError(f"configs/prism.py:{which}: expected no argument, `paper` or `light`")
    paper, light = which == "paper", which == "light"
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
    config.protocol = "paper" if paper else "clean"
    config.switches = ""                # of the protocol, such as "max_new_tokens=64"
    config.force_latents = False        # end the prompt with the start marker: every item opens a block
    config.budget = 0                   # latents a block; 0: the protocol's
    config.rows = 8                     # items a batch
    config.programs = 4                 # prompt sizes that are compiled
    # A host's devices: items over data, weights that one device cannot hold over tensor. Of a pod, every host has items
    # of its own; more than its devices (72B: tensor=8 on hosts of 4) makes several hosts hold the weights together.
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.dtype = ""                   # default: bfloat16 on accelerators, float32 on a CPU
    # Whose latents each checkpoint is fed besides: folders of finished audits (WORKDIR/NAME), or "others" for those of
    # all other checkpoints of this run: a table of readers by makers.
    config.latents_from = ""
    config.seed = 0
    config.conditions = ml_collections.ConfigDict({
        "names": NAMES[which],
        "sigmas": () if light else (0.1, 0.3, 1.0),     # absolute noise, raw units
        "alphas": () if which else (0.1, 0.3, 1.0),     # relative: share of the latent's norm
        "budgets": (),                  # latents a block
        "per_latent": "" if which else "zero,step_mean",    # on one latent at a time
        # The answer's own way to the image, closed: "hidden" by attention, "blank" by another prompt (one prefill
        # more); the clean pass and every condition of `crossed` run again in each.
        "contexts": "" if which else "hidden",
        "crossed": "" if which else "donor_directed,mean,oracle",
        "chunk": 0,                     # conditions at a time; 0: as many as fit
        # Bytes a device may spend on them; all together keep prompts that were read in twice as many.
        "memory": 4e9,
    })  # fmt: skip
    config.capture = ml_collections.ConfigDict({"layers": "last"})      # or "all"
    config.probes = ml_collections.ConfigDict({
        "controls": 20, "control": "marginal", "ladder": () if light else (1, 4, 16, 64),
        # What the answer says: "closed" classes by kind of question, match with the text of the "options", both where
        # they can be asked ("auto"), "none".
        "content": "auto",
    })  # fmt: skip
    config.alignment = ml_collections.ConfigDict({"count": 200, "latents": 64, "template": ""})
    # Which clean state, put into a run under this condition, brings the clean answer back; items, layers (none: some of
    # all; 0 is what is fed).
    config.patching = ml_collections.ConfigDict({
        "condition": "donor_paper" if paper else "donor_directed", "count": 0 if which else 48, "layers": (),
    })  # fmt: skip
    config.sensitivity = ml_collections.ConfigDict({"count": 0 if light else 64})
    config.attention = {"": "clean,zero,donor", "paper": "clean,zero", "light": ""}[which]
    config.gallery = 6
    config.level = 0.95
    config.draws = 10_000               # bootstrap resamples
    config.report = True                # False: audit only; a later run of several checkpoints writes the report
    return config
