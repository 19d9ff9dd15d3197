"""The full study: one thing at a time varied over seeds, with predictions written before the first run of each block.

`tools/reproduce.py` runs it and goes on where it was stopped, on this machine or, from the committed results, on
another one; results (tools/study/store.py has their format) are kept apart from checkpoints, and a run whose result is
there is not run again. `--config.only=report` needs results alone.

What was known when predictions were written: the miniature study (configs/reproduce.py), one seed of nine recipes. Runs
of `lvr`, `p_lvr_2`, `n_lvr`, `d_lvr` and of the bottleneck at lambda 0.1 with seed 0 repeat it.

Cost: three minutes of one core a run.

    python tools/reproduce.py --config configs/full_study.py --workdir runs/full_study
    python tools/reproduce.py --config configs/full_study.py --workdir runs/full_study --config.only=report
"""

from ml_collections import ConfigDict

from configs import reproduce

# Runs by block, in the words of tools/study/runs.py.
BLOCKS = {
    # Does accuracy follow cosine where the picture is visible to all, and by which way?
    "lambda_plain": "plain: lvr lambda=0|0.01|0.03|0.1|0.3|1",
    # And where the answer has to go through the latents?
    "lambda_bottleneck": "bottleneck: lvr lambda=0|0.03|0.1|0.3|1",
    # The paper's variants, with seeds and matched weights.
    "variants": "plain: lvr, n_lvr noise=0.3|1, d_lvr until=0.3|0.6,"
                " p_lvr_2, p_lvr_3, p_lvr_2_matched, p_lvr_3_matched",
}


def predicted(block, name, statement, direction, quantity, bounds, where=None, **fields) -> dict:
    """One prediction in the form that tools/study/blocks.py states; bounds: low and high."""
    return {"name": name, "block": block, "statement": statement, "direction": direction, "quantity": quantity,
            "where": where or {}, "low": bounds[0], "high": bounds[1], **fields}  # fmt: skip


PREDICTIONS = (
    predicted("lambda_plain", "plain: lambda moves cosine", "Lambda 1 instead of 0 raises cosine by more than 0.3.",
              "up", "difference", (0.3, None), {"lambda": 1.0}, against={"lambda": 0.0}, of="cosine"),
    predicted("lambda_plain", "plain: lambda leaves accuracy", "Lambda 0.1 instead of 0 moves accuracy by less than 2 "
              "points.", "none", "difference", (-2.0, 2.0), {"lambda": 0.1}, against={"lambda": 0.0}, of="accuracy"),
    predicted("lambda_plain", "plain: no relation within lambda", "Among seeds of one lambda, accuracy and cosine are "
              "unrelated: |r| < 0.3.", "none", "within", (-0.3, 0.3), of="accuracy", x="cosine", by="lambda"),
    predicted("lambda_plain", "plain: nothing through the latents", "At any lambda the answer blind to its latents is "
              "within 2 points of the other.", "none", "mean", (-2.0, 2.0), of="through"),
    predicted("lambda_plain", "plain: what changes, changes blind", "The answer blind to its latents carries at least "
              "0.8 of accuracy's changes.", "up", "carried", (0.8, None), of="blind"),
    predicted("lambda_plain", "plain: another's latents are not followed", "At lambda 0.1 the answer turns to what a "
              "donor's latents argue for in less than 2 points of items.", "none", "mean", (None, 2.0),
              {"lambda": 0.1}, of="follows donor_directed"),
    predicted("lambda_bottleneck", "bottleneck: cosine tells", "Over lambda, accuracy and cosine rise together: r > "
              "0.7.", "up", "correlation", (0.7, None), of="accuracy", x="cosine"),
    predicted("lambda_bottleneck", "bottleneck: the loss teaches", "Lambda 0.1 instead of 0 raises accuracy by more "
              "than 20 points.", "up", "difference", (20.0, None), {"lambda": 0.1}, against={"lambda": 0.0},
              of="accuracy"),
    predicted("lambda_bottleneck", "bottleneck: more of it teaches more", "Lambda 1 instead of 0.1 raises accuracy.",
              "up", "difference", (0.0, None), {"lambda": 1.0}, against={"lambda": 0.1}, of="accuracy"),
    predicted("lambda_bottleneck", "bottleneck: through the latents", "What comes through the latents carries at least "
              "0.8 of accuracy's changes.", "up", "carried", (0.8, None), of="through"),
    predicted("lambda_bottleneck", "bottleneck: another's latents are followed", "At lambda 0.1 the answer turns to "
              "what a donor's latents argue for in more than 10 points of items.", "up", "mean", (10.0, None),
              {"lambda": 0.1}, of="follows donor_directed"),
    predicted("variants", "variants: noise does nothing", "N-LVR with sigma 1 answers as LVR within 2 points.",
              "none", "difference", (-2.0, 2.0), {"config": "n_lvr", "noise": 1.0}, against={"config": "lvr"},
              of="accuracy"),
    predicted("variants", "variants: decoupling costs cosine", "D-LVR from 0.3 has a cosine lower than LVR's by more "
              "than 0.05.", "down", "difference", (None, -0.05), {"config": "d_lvr", "until": 0.3},
              against={"config": "lvr"}, of="cosine"),
    predicted("variants", "variants: decoupling leaves accuracy", "D-LVR from 0.3 answers as LVR within 2 points.",
              "none", "difference", (-2.0, 2.0), {"config": "d_lvr", "until": 0.3}, against={"config": "lvr"},
              of="accuracy"),
    predicted("variants", "variants: P-LVR-2 has more cosine", "P-LVR-2's cosine is above LVR's by more than 0.1.",
              "up", "difference", (0.1, None), {"config": "p_lvr_2"}, against={"config": "lvr"}, of="cosine"),
    predicted("variants", "variants: P-LVR-2 answers worse", "P-LVR-2 is more than 1 point less accurate than LVR.",
              "down", "difference", (None, -1.0), {"config": "p_lvr_2"}, against={"config": "lvr"}, of="accuracy"),
    predicted("variants", "variants: the weight, not the stage", "With LVR's weight P-LVR-2 is more accurate than with "
              "its own.", "up", "difference", (0.0, None), {"config": "p_lvr_2_matched"},
              against={"config": "p_lvr_2"}, of="accuracy"),
    predicted("variants", "variants: P-LVR-2 believes its latents", "The mean latent costs P-LVR-2 more than 10 "
              "points.", "down", "mean", (None, -10.0), {"config": "p_lvr_2"}, of="delta mean"),
    predicted("variants", "variants: cosine misleads", "Over variants and seeds, accuracy falls with cosine: r < -0.3.",
              "down", "correlation", (None, -0.3), of="accuracy", x="cosine"),
)  # fmt: skip


def get_config() -> ConfigDict:
    c = reproduce.get_config()
    for name in ("runs", "light", "sigmas"):
        del c[name]
    c.blocks = ConfigDict(BLOCKS)
    c.order = tuple(BLOCKS)                 # blocks are finished one after another
    c.predictions = PREDICTIONS
    c.results = "lvr_jax/assets/full_study/results"
    c.seeds = (0, 1, 2)
    c.train.peak = 1e-3                     # of all runs, whatever configs/common.py has: stored results are of it
    c.fork = False                          # a run depends on no other one: results are enough to go on elsewhere
    c.budget = 0                            # latents a block: those that a run was trained for
    # Every audit is light. Named here, so that results stay what they are when more is added there.
    c.conditions = (
        "donor_directed,mean,answer_blind_to_latents,markers_only,oracle,wrong_box,zero,donor,norm_matched"
    )
    return c
