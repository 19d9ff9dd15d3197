"""The full study: one thing at a time varied over seeds, with predictions written before the first run of each block.

`tools/reproduce.py` runs it and goes on where it was stopped, on this machine or, from the committed results, on
another one; results (tools/study/store.py has their format) are kept apart from checkpoints, and a run whose result is
there is not run again. `--config.only=report` needs results alone.

What was known when predictions were written. Of the first three blocks: the miniature study (configs/reproduce.py), one
seed of nine recipes; runs of `lvr`, `p_lvr_2`, `n_lvr`, `d_lvr` and of the bottleneck at lambda 0.1 with seed 0 repeat
it. Of the others: besides that the runs of `lambda_plain`, and ten of `lambda_bottleneck` (seeds 0 and 1); and of what
they have anew, a single 300-step run of the whole mask, the dial's end. Of `rotation`: all other blocks, what its base
was measured to do (its card), and from another base, whose tower named no place in a solution's panel, one 300-step run
with shape 3 hidden, at chance even with true latents.

Cost: two to three minutes of one core a run, five with rollout or a route by position, half a minute for an earlier
state. In all 5.3 hours of one core of a virtual machine (x86 with AVX-512, two cores), in sittings that were killed and
went on.

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
    # Does what is regressed matter, and does the loss have to pass through the network? `head=glu` alone is the control
    # of `head_only`: the same head, and a loss that passes on.
    "targets": "plain: lvr, lvr target=shuffled|random|wrong_box, lvr head=glu, lvr head=glu route=head_only;"
               " bottleneck: lvr, lvr target=shuffled|wrong_box",
    # As more of the asked digit is black, does the answer come to rely on its latents, and do they help?
    "dial": "plain: lvr; masked: lvr dark=0.25|0.5|0.75|1",
    # In the time of one run, do cosine and accuracy rise together?
    "trajectories": "plain: lvr at=60|120|180|240, lvr; bottleneck: lvr at=60|120|180|240, lvr",
    # Trained on the model's own latents, does the answer still need the loss? Teacher forcing of the same eight pooled
    # latents beside it; a step has the same 32 questions.
    "lambda_rollout": "bottleneck: lvr_pooled lambda=0|0.1|1, rollout rows=32 lambda=0|0.1|1",
    # A check alone: routes by position share all matrices (lvr_jax/latents/objectives.py says what they cut).
    "routing": "plain: lvr, lvr route=latent_only|outside_only",
    # Where a latent could hold what the picture lacks, the solution of an analogy: does the answer use it? And where
    # nothing else can tell? In half the steps of the others.
    "rotation": "rotation: rotation_lvr lambda=0|0.1 steps=150; rotation_query: rotation_lvr steps=150",
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
    predicted("targets", "targets: plain, any target will do", "In the plain setting shuffled, random and wrong-box "
              "targets leave accuracy within 2 points of own ones.", "none", "difference", (-2.0, 2.0),
              {"setting": "plain", "target": ("shuffled", "random", "wrong_box")},
              against={"setting": "plain", "target": "own", "head": "none"}, of="accuracy"),
    predicted("targets", "targets: plain, a wrong box is learnt elsewhere", "Latents taught a wrong box have a cosine "
              "with the right one that is lower than LVR's by more than 0.1.", "down", "difference", (None, -0.1),
              {"setting": "plain", "target": "wrong_box"},
              against={"setting": "plain", "target": "own", "head": "none"}, of="cosine"),
    predicted("targets", "targets: a loss of the head alone leaves accuracy", "A loss that reaches the latent head "
              "alone answers within 2 points of one that passes on.", "none", "difference", (-2.0, 2.0),
              {"route": "head_only"}, against={"head": "glu", "route": "both"}, of="accuracy"),
    predicted("targets", "targets: a head reads less than a network learns", "Stopped below the head, the loss reaches "
              "a cosine that is lower by more than 0.05.", "down", "difference", (None, -0.05),
              {"route": "head_only"}, against={"head": "glu", "route": "both"}, of="cosine"),
    predicted("targets", "targets: bottleneck, the wrong box costs", "Behind the bottleneck wrong-box targets cost "
              "more than 5 points against own ones.", "down", "difference", (None, -5.0),
              {"setting": "bottleneck", "target": "wrong_box"},
              against={"setting": "bottleneck", "target": "own"}, of="accuracy"),
    predicted("targets", "targets: bottleneck, latents of a wrong box are not followed", "Behind the bottleneck a "
              "donor's latents are followed by more than 10 points less with wrong-box targets than with own ones.",
              "down", "difference", (None, -10.0), {"setting": "bottleneck", "target": "wrong_box"},
              against={"setting": "bottleneck", "target": "own"}, of="follows donor_directed"),
    predicted("dial", "dial: darkness costs accuracy", "All of the digit black instead of a quarter costs more than 40 "
              "points.", "down", "difference", (None, -40.0), {"dark": 1.0}, against={"dark": 0.25}, of="accuracy"),
    predicted("dial", "dial: oracle latents help with the dose", "What oracle latents add at three quarters is more "
              "than 5 points above what they add at a quarter.", "up", "difference", (5.0, None), {"dark": 0.75},
              against={"dark": 0.25}, of="delta oracle"),
    predicted("dial", "dial: oracle latents help most where all is black", "Where all is black oracle latents add more "
              "than 40 points.", "up", "mean", (40.0, None), {"dark": 1.0}, of="delta oracle"),
    predicted("dial", "dial: own latents give nothing that is black", "At any share own latents add less than 3 points "
              "to the answer blind to them.", "none", "mean", (None, 3.0), {"setting": "masked"}, of="through"),
    predicted("dial", "dial: another's latents are not followed", "At any share the answer turns to what a donor's own "
              "latents argue for in less than 3 points of items: they are as empty.", "none", "mean", (None, 3.0),
              {"setting": "masked"}, of="follows donor_directed"),
    predicted("trajectories", "time: plain, both rise", "In the plain setting accuracy and cosine rise together in "
              "time: r > 0.3 over states of three runs.", "up", "correlation", (0.3, None), {"setting": "plain"},
              of="accuracy", x="cosine"),
    predicted("trajectories", "time: bottleneck, both rise", "Behind the bottleneck they do so more closely: r > 0.7.",
              "up", "correlation", (0.7, None), {"setting": "bottleneck"}, of="accuracy", x="cosine"),
    predicted("trajectories", "time: plain, never through the latents", "At no time do the latents of the plain "
              "setting add 2 points, or take them.", "none", "mean", (-2.0, 2.0), {"setting": "plain"}, of="through"),
    predicted("lambda_rollout", "rollout: no loss is needed", "Without the loss, rollout answers better than teacher "
              "forcing by more than 5 points.", "up", "difference", (5.0, None),
              {"feedback": "rollout", "lambda": 0.0}, against={"feedback": "teacher", "lambda": 0.0}, of="accuracy"),
    predicted("lambda_rollout", "rollout: latents carry without the loss", "Without the loss, rollout's answer turns "
              "to what a donor's latents argue for in more than 10 points of items.", "up", "mean", (10.0, None),
              {"feedback": "rollout", "lambda": 0.0}, of="follows donor_directed"),
    predicted("lambda_rollout", "rollout: the loss teaches less", "From lambda 0 to 1 rollout gains less than 15 "
              "points of accuracy.", "none", "difference", (None, 15.0), {"feedback": "rollout", "lambda": 1.0},
              against={"feedback": "rollout", "lambda": 0.0}, of="accuracy"),
    predicted("lambda_rollout", "rollout: the loss moves cosine all the same", "From lambda 0 to 1 rollout gains more "
              "than 0.3 of cosine.", "up", "difference", (0.3, None), {"feedback": "rollout", "lambda": 1.0},
              against={"feedback": "rollout", "lambda": 0.0}, of="cosine"),
    predicted("routing", "routing: accuracy does not care", "By either route accuracy is within 2 points of both "
              "together.", "none", "difference", (-2.0, 2.0), {"route": ("latent_only", "outside_only")},
              against={"route": "both"}, of="accuracy"),
    predicted("routing", "routing: most of cosine comes through latent positions", "Through latent positions alone "
              "cosine is within 0.1 of both together.", "level", "difference", (-0.1, 0.1), {"route": "latent_only"},
              against={"route": "both"}, of="cosine"),
    predicted("routing", "routing: less of it comes round them", "Through all other positions alone cosine is lower "
              "than by both by more than 0.02.", "down", "difference", (None, -0.02), {"route": "outside_only"},
              against={"route": "both"}, of="cosine"),
    predicted("rotation", "rotation: the loss moves cosine", "Lambda 0.1 instead of 0 raises cosine by more than 0.2.",
              "up", "difference", (0.2, None), {"setting": "rotation", "lambda": 0.1},
              against={"setting": "rotation", "lambda": 0.0}, of="cosine"),
    predicted("rotation", "rotation: the loss leaves accuracy", "Lambda 0.1 instead of 0 moves accuracy by less than 3 "
              "points.", "none", "difference", (-3.0, 3.0), {"setting": "rotation", "lambda": 0.1},
              against={"setting": "rotation", "lambda": 0.0}, of="accuracy"),
    predicted("rotation", "rotation: answers do not go through the latent", "With shape 3 in view the answer blind to "
              "its latent is within 2 points of the other, at either lambda.", "none", "mean", (-2.0, 2.0),
              {"setting": "rotation"}, of="through"),
    predicted("rotation", "rotation: the solution itself helps little", "With shape 3 in view oracle latents add less "
              "than 3 points, although they show the solution.", "none", "mean", (None, 3.0),
              {"setting": "rotation"}, of="delta oracle"),
    predicted("rotation", "rotation: the solution is read where nothing else tells", "With shape 3 hidden oracle "
              "latents add more than 40 points.", "up", "mean", (40.0, None), {"setting": "rotation_query"},
              of="delta oracle"),
    predicted("rotation", "rotation: own latents do not have it", "With shape 3 hidden own latents add less than 3 "
              "points to the answer blind to them.", "none", "mean", (None, 3.0), {"setting": "rotation_query"},
              of="through"),
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
    # Whatever configs/common.py has: stored results are of it.
    c.train.questions = 1                   # about a picture
    c.train.optimizer = ConfigDict({"peak": 1e-3, "betas": (0.9, 0.999)})
    c.fork = False                          # a run depends on no other one: results are enough to go on elsewhere
    c.budget = 0                            # latents a block: those that a run was trained for
    # Every audit is light. Named here, so that results stay what they are when more is added there.
    c.conditions = (
        "donor_directed,mean,answer_blind_to_latents,markers_only,oracle,wrong_box,zero,donor,norm_matched"
    )
    return c
