"""The paper in miniature: which runs, how long, and what is looked at. `tools/reproduce.py` runs it.

Settings: *plain*: the picture is visible to all, so latents may be redundant. *controls*: the same with one thing taken
away or matched, apart from the paper's five. *believed*: trained longer from a base that cannot reply behind a block,
so that the answer comes to rely on the latents. *bottleneck*: only the latents see the picture, so own latents must
carry the answer. *masked*: what is asked for is black, so oracle latents must help and own ones cannot. Where the last
two behave, a null result in the plain setting means something.

Cost: about 15 minutes on 2 cores, nothing to download.

    python tools/reproduce.py --workdir runs/reproduce
    python tools/reproduce.py --workdir runs/three_seeds --config.seeds="(0, 1, 2)"
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.checkpoint = "lvr_jax/assets/tiny"
    # Configs by setting; base, sft and sft_markers have no latents and are only scored. An entry may have axes, such as
    # "lvr lambda=0|0.1|1 seed=0|1": tools/study/runs.py lists them. Three stages take twice the steps to learn, and so
    # do answers through latents alone.
    c.runs = ConfigDict({
        "plain": "base,sft,sft_markers,lvr,n_lvr,d_lvr,p_lvr_2,p_lvr_3 steps=600",
        "controls": "lambda_zero,p_lvr_2_matched", "believed": "lvr",
        "bottleneck": "lvr steps=600", "masked": "lvr",
    })  # fmt: skip
    c.seeds = (0,)
    # A step has 32 questions: 16 rows of two, or, where a picture does not depend on the question, `questions` about
    # each picture, which share its tokens (lvr_jax/data/branches.py). The losses of P-LVR that add up over a row then
    # have four questions in it, as the paper's packs. optimizer: fields that all runs share, instead of their own.
    c.train = ConfigDict({"steps": 300, "rows": 16, "questions": 4, "optimizer": {}})
    c.questions = 1000              # scored for accuracy
    c.audited = 400                 # of them, under every condition
    # Settings whose audits are `configs/prism.py:light`: the conditions that tell settings apart, and a verdict. The
    # paper's tables and figures are of the plain setting.
    c.light = "controls,believed,bottleneck,masked"
    c.budget = 4                    # latents a block; twice as many in a context stage
    c.sigmas = (0.1, 0.3, 1.0, 3.0)
    c.draws = 10_000                # bootstrap resamples
    c.only = ""                     # stages, with commas: convert, train, evaluate, audit, report; all if empty
    c.workers = 0                   # processes of one thread each; 0: one a core
    # Expected seconds of one core, for the forecast: a step, the compilation of one, audits (of those that compile much
    # and those that find it done on average), a light one, an evaluation, what else a job takes.
    c.seconds = ConfigDict({
        "step": 0.22, "compile": 13.0, "audit": 90.0, "light": 24.0, "evaluate": 11.0, "start": 1.5,
    })  # fmt: skip
    return c
