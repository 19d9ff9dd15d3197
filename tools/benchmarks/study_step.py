"""Processor seconds of a training step of the study with its input, one core, against the method of commit 8ab1dee.

`lvr` of the default study: 32 questions a step, drawn, encoded, packed and trained on by one process of one thread. The
baseline is kept here: a picture and a sequence for each question, unembedding of every token in chunks of 256, columns
of a sequence broadcast part by part, digits blended one by one, a layout for each row, cosines of positions in every
layer, and the system's allocator as it is. Both sides see the same questions about the same pictures, take turns, and
must have equal losses. Processor seconds, so that other work on the machine changes little; load and wall seconds stand
beside them.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

GOAL = 2.0
STEPS, ROUNDS = 3, 8            # steps of a turn; turns of each side, the first of which is not counted
QUESTIONS = 32                  # a step
ROOT = Path(__file__).resolve().parents[2]
SIDES = ("ours", "baseline")


def run() -> dict:
    from study.workers import KEPT_MEMORY

    began = os.getloadavg()[0]
    processes = {side: _start(side, KEPT_MEMORY if side == "ours" else {}) for side in SIDES}
    turns = {side: [] for side in SIDES}
    try:
        for _ in range(ROUNDS):
            for side, process in processes.items():
                turns[side].append(_turn(side, process))
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()
    losses = {side: [loss for turn in turns[side] for loss in turn["losses"]] for side in SIDES}
    # Sums over the tokens of a batch in another order, and what that becomes over a few updates.
    if not np.allclose(*losses.values(), rtol=1e-4):
        raise RuntimeError(f"study_step: the two sides' losses differ: {losses}")
    median = lambda side, name: float(np.median([turn[name] for turn in turns[side][1:]])) / STEPS  # noqa: E731
    seconds, baseline = (median(side, "seconds") for side in SIDES)
    questions = turns["ours"][0]["questions"] / STEPS
    return {
        "name": "study_step", "ratio": baseline / seconds, "goal": GOAL, "holds": bool(baseline / seconds >= GOAL),
        "seconds": seconds, "baseline_seconds": baseline,
        "details": {
            "questions_a_step": questions, "questions_per_core_second": round(questions / seconds, 1),
            "baseline_questions_per_core_second": round(questions / baseline, 1),
            "of_which_input": {side: round(median(side, "input"), 4) for side in SIDES},
            "wall_seconds": {side: round(median(side, "wall"), 4) for side in SIDES},
            "load_before": round(began, 1), "load_after": round(os.getloadavg()[0], 1), "cores": os.cpu_count(),
        },
    }  # fmt: skip


def _start(side: str, environment: dict[str, str]) -> subprocess.Popen:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, side], cwd=ROOT, env={**own, **environment}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def _turn(side: str, process: subprocess.Popen) -> dict:
    process.stdin.write("go\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"study_step: the process of {side} ended with status {process.wait()}")
    return json.loads(answer)


# One side: a process of its own ------------------------------------------------------------------------------------


def _serve(side: str) -> None:
    """Takes STEPS steps for every line of input and answers with what they cost."""
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])      # as a worker of a study; XLA has a thread a core

    import jax

    from configs import reproduce
    from lvr_jax.command.start import OBJECTS_BETWEEN_COLLECTIONS
    from lvr_jax.data.device import to_device
    from lvr_jax.training.experiment import Experiment
    from lvr_jax.training.input import Input
    from study.content import experiment as experiment_config
    from study.jobs import training_settings
    from study.runs import runs

    study = reproduce.get_config()
    run = next(run for run in runs(study, Path()) if run.variant == "lvr")
    c = experiment_config(run, training_settings(study, run))
    c.data.prefetch = 0                 # no thread: the input's seconds can be told from the step's
    c.data.shuffle = False              # and both sides have one order
    if side == "baseline":
        _as_before(c)
    else:
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)       # as in every program
    experiment = Experiment.from_config(c)
    tokenizer = experiment.tokenizer
    if side == "baseline":              # the tiny checkpoint had no template to render; the text is the same
        tokenizer = dataclasses.replace(tokenizer, chat_template=None)
    with jax.set_mesh(experiment.mesh):
        batches = Input(experiment.data, tokenizer, branches=experiment.branches)
        state, step = experiment.initial_state(), experiment.step()
        for _ in sys.stdin:
            found = {"losses": [], "questions": 0, "input": 0.0}
            start, wall = time.process_time(), time.perf_counter()
            for _ in range(STEPS):
                waited = time.process_time()
                batch = next(batches)
                arrays = to_device(batch.arrays, experiment.rows)
                found["input"] += time.process_time() - waited
                state, metrics = step(state, arrays)
                found["losses"].append(float(metrics["loss_total"]))
                found["questions"] += QUESTIONS
            found |= {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
            print(json.dumps(found), flush=True)


def _as_before(c) -> None:
    """Puts commit 8ab1dee's ways in the place of today's. c: the config, changed to rows of two questions."""
    import jax
    import jax.numpy as jnp

    from lvr_jax.data import chat, digit_pictures, digit_scenes, from_config
    from lvr_jax.models import cross_entropy, layout
    from lvr_jax.models.qwen2_5_vl import rope

    count, room = c.branches.count, c.branches.shared + c.branches.each
    c.objective.chunk = 256
    c.rows, c.branches.count = QUESTIONS // 2, 1
    c.data.tokens, c.data.windows, c.data.max_per_row, c.data.lookahead = 2 * room, 2, 2, 2

    class Apart(digit_scenes.DigitSearch):
        """Every question with its picture, drawn for it alone."""

        def __len__(self):
            return count * self.size

        def __getitem__(self, index):
            picture, own = divmod(index, count)
            scene, asked, rng = self._draw(picture)
            # Options are drawn from one stream: a tenth of a millisecond a question that the method did not need.
            return [self._sample(picture, scene, n, question, rng) for n, question in enumerate(asked[:own + 1])][-1]

    from_config.KINDS["digit_search"] = Apart

    class Sequence(chat._Sequence):
        def add(self, ids, **columns):
            ids = np.atleast_1d(np.asarray(ids, np.int32))
            values = [(columns.get(name, default), dtype) for name, dtype, default in chat.COLUMNS]
            self.parts.append((ids, *(np.broadcast_to(np.asarray(v, dtype), ids.shape) for v, dtype in values)))
            self.length += len(ids)

        def arrays(self):
            names = ("tokens", *(name for name, _, _ in chat.COLUMNS))
            arrays = {name: np.concatenate(column) for name, column in zip(names, zip(*self.parts))}
            return arrays | {"latent_pool": np.asarray(self.pool, np.int32).reshape(-1, 2)}

    def paint(scene, noise, background, rng):
        height, width = scene.image.shape[:2]
        grey = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width, 1)
        base = rng.integers(*background)
        scene.image[:] = (grey.astype(np.uint16) * noise >> 8) + base
        alphas = digit_pictures.load_glyphs(int(scene.canvas[0, 2] - scene.canvas[0, 0])).alpha
        for sample, colour, (x0, y0, x1, y1) in zip(scene.samples, scene.colours, scene.canvas.tolist()):
            alpha = alphas[sample, :, :, None].astype(np.uint16)
            under = scene.image[y0:y1, x0:x1]
            under[:] = (under * (255 - alpha) + digit_pictures.PALETTE[colour] * alpha + 127) // 255

    def over_chunks(hidden, kernel, labels, weights, *, chunk, gradient):
        def step(total, part):
            (loss, aux), (d_hidden, d_kernel) = jax.value_and_grad(
                cross_entropy._chunk_loss, argnums=(0, 1), has_aux=True
            )(part[0], kernel, *part[1:])
            return (total[0] + loss, total[1] + d_kernel.astype(jnp.float32)), (aux, d_hidden)

        T, start = hidden.shape[1], (jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32))
        parts = tuple(cross_entropy._chunks(x, chunk) for x in (hidden, labels, weights))
        (loss, d_kernel), (aux, d_hidden) = jax.lax.scan(step, start, parts)
        losses, correct, d_hidden = (cross_entropy._unchunk(x, T) for x in (*aux, d_hidden))
        return loss, losses, correct, (d_hidden, d_kernel)

    chat._Sequence, digit_scenes.paint, cross_entropy._over_gathered = Sequence, paint, over_chunks
    layout._vision_layout = layout._vision_layout.__wrapped__
    rope._cos_and_sin = lambda angles, unrolled: (jnp.cos(angles), jnp.sin(angles))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One side of the benchmark; tools/bench.py starts it.")
    parser.add_argument("side", choices=SIDES)
    _serve(parser.parse_args().side)
