"""A model family is a folder and an entry in the registry: a toy one trains, converts and is swept by the same code."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_family import FAMILY

from lvr_jax import checkpoints
from lvr_jax.checkpoints.conversion import to_flax, to_hf
from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.packing import Geometry, collate
from lvr_jax.data.sample import Sample
from lvr_jax.evaluation.subject import open_subject, token_ids
from lvr_jax.latents import conditions, rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.spec import plan
from lvr_jax.models import families
from lvr_jax.models.interface import ConfigError
from lvr_jax.models.records import Images, Tokens
from lvr_jax.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/training"))
from runs import metrics, small  # noqa: E402

# Comparisons with the reference code of this very family, and benchmarks on networks of its shape.
REFERENCES = ("tools/golden/", "tools/benchmarks/")
STEPS, LATENTS = 10, 4
prefill = jax.jit(rollout.prefill, static_argnums=0)
sweep = jax.jit(
    rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps")
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "toy", FAMILY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of the toy family, by the ordinary training loop and the ordinary config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "toy", FAMILY)
        workdir = tmp_path_factory.mktemp("toy")
        run = small("lvr", model="toy", steps=24, optimizer__peak=1e-2, checkpoint__every=24, checkpoint__export=True)
        train(run, workdir)
        return workdir


def test_nothing_outside_models_names_a_family():
    named = [
        f"{path}: {line.strip()}"
        for folder in ("lvr_jax", "tools", "configs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"models[./]qwen2_5_vl", line)
        if not str(path.relative_to(ROOT)).startswith(("lvr_jax/models/", *REFERENCES))
    ]
    assert not named
    above = [p for p in (ROOT / "lvr_jax/models").glob("*.py") if "models.qwen2_5_vl" in p.read_text()]
    assert [path.name for path in above] == ["families.py"]


@pytest.mark.slow
def test_a_second_family_trains(trained):
    losses = [line["loss_total"] for line in metrics(trained) if "loss_total" in line]
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_a_second_family_goes_to_hugging_face_and_back_bit_for_bit(trained, tmp_path):
    to_hf(trained / "export", tmp_path / "hf")
    to_flax(tmp_path / "hf", tmp_path / "again")
    before, after = (checkpoints.load(folder)[1] for folder in (trained / "export", tmp_path / "again"))
    assert set(checkpoints.orbax_io.flat(before)) == set(families.shapes(FAMILY.sizes["toy"]))
    for path, x in checkpoints.orbax_io.flat(before).items():
        np.testing.assert_array_equal(x, checkpoints.orbax_io.flat(after)[path], err_msg=path)


def test_a_second_family_is_swept_and_its_rollout_is_its_parallel_pass(trained):
    subject = open_subject(trained / "export")
    sample = Sample("a", (np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8),), "Which digit?", "1")
    prompt = encode_prompt(sample, subject.tokenizer, min_pixels=784, max_pixels=112 * 112)
    geometry = Geometry(subject.config.vision.merge, subject.config.vision.window)
    batch = collate([[prompt]], geometry.smallest([[prompt]]), geometry)
    the_plan = plan(subject.spec, token_ids(subject.tokenizer), LATENTS)
    prefix, _ = prefill(subject.graph, subject.params, batch, np.zeros(1, np.int32))
    forced = np.full(STEPS, -1)
    forced[0] = the_plan.start[0]                # a latent block opens at once
    names = [conditions.clean(), conditions.zero()]
    stacked = conditions.stack(names, (), len(the_plan.spec.stages), LATENTS)
    trace = sweep(
        subject.graph, subject.params, prefix, the_plan, stacked, rollout.no_bank(prefix, the_plan),
        decoding=Decoding(STEPS, subject.stop), steps=STEPS, forced=forced,
    )  # fmt: skip
    clean, zeroed = (np.asarray(trace.fed)[i, 0][np.asarray(trace.latent)[i, 0]] for i in range(2))
    assert clean.shape[0] == zeroed.shape[0] == LATENTS and np.abs(clean).min(-1).all() and not zeroed.any()

    # The same tokens and latents in one pass without a cache: states of every decoded step.
    model = nnx.merge(subject.graph, subject.params)
    merged, _ = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]))
    n, live = batch["tokens"].shape[1], int(np.asarray(trace.live)[0, 0].sum())
    token, latent, fed = (np.asarray(x)[0, 0] for x in (trace.token, trace.latent, trace.fed))
    x = [model.embed(batch["tokens"], batch["vision_slot"], merged)]
    x += [fed[None, None, s] if latent[s] else model.embed(token[None, s - 1 : s]) for s in range(1, live)]
    last = int(prefix.next_position[0])
    positions = np.concatenate([batch["positions"], np.tile(np.arange(last, last + live - 1), (1, 3, 1))], -1)
    tokens = Tokens(jnp.asarray(positions), jnp.ones((1, n + live - 1), jnp.int32))
    hidden, _, _ = model.decode(jnp.concatenate(x, 1), tokens)
    # fp32 sums in another order: 1e-6 was seen.
    np.testing.assert_allclose(np.asarray(trace.hidden)[0, 0, :live], hidden[0, n - 1 :], atol=1e-5)


def test_a_family_that_is_not_registered_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"config.json: model_type is 'other', expected one of .*'qwen2_5_vl', 'toy'"):
        families.read_config({"model_type": "other"})
