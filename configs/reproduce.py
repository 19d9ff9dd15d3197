"""The paper in miniature: which runs, how long, and what is looked at. `tools/reproduce.py` runs it.

Three settings from one base. *plain*: the picture is visible to all, so latents may be redundant. *bottleneck*: only
the latents see it, so own latents must carry the answer. *masked*: what is asked for is black, so oracle latents must
help and own ones cannot. Where the two controls behave, a null result in the plain setting means something.

Cost: 15 to 20 minutes on 2 cores, nothing to download.

    python tools/reproduce.py --workdir runs/reproduce
    python tools/reproduce.py --workdir runs/three_seeds --config.seeds="(0, 1, 2)"
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.checkpoint = "lvr_jax/assets/tiny"
    # Names of configs by setting; base and sft have no latents and are only scored.
    c.runs = ConfigDict({
        "plain": "base,sft,lvr,n_lvr,d_lvr,p_lvr_2,p_lvr_3", "bottleneck": "bottleneck", "masked": "masked_input",
    })  # fmt: skip
    c.seeds = (0,)
    c.train = ConfigDict({"steps": 300, "rows": 16})        # of two questions each
    c.questions = 1000              # scored for accuracy
    c.audited = 400                 # of them, under every condition
    c.budget = 4                    # latents a block; twice as many in a context stage
    c.sigmas = (0.1, 0.3, 1.0, 3.0)
    c.draws = 10_000                # bootstrap resamples
    c.only = ""                     # stages, with commas: convert, train, evaluate, audit, report; all if empty
    c.workers = 0                   # processes of one thread each; 0: one a core
    # Expected seconds of one core, for the forecast: a step, an audit, an evaluation, the start of a process.
    c.seconds = ConfigDict({"step": 0.55, "audit": 90.0, "evaluate": 15.0, "start": 12.0})
    return c
