"""The verdict of a whole audit is right for checkpoints whose use of their latents is known by construction."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import planted  # noqa: E402

from lvr_jax.latents import sweep  # noqa: E402
from lvr_jax.latents.reading import Held  # noqa: E402
from lvr_jax.prism import experiment  # noqa: E402
from lvr_jax.prism.measure import corruptions, teacher  # noqa: E402
from lvr_jax.prism.outcomes import floor, outcomes, verdict  # noqa: E402
from lvr_jax.prism.verdict import BELIEVED, IGNORED, USES  # noqa: E402

ROOT = Path(__file__).parents[2]
# `partly` reads image and latents, which say the same: it can do without the latents, and follows wrong ones half-way.
KINDS = [("carrier", USES), ("ignored", IGNORED), ("partly", BELIEVED)]


def config(**fields):
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.get_config()
    made.update_from_flattened_dict(fields)
    return made


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Three planted checkpoints on 191 items, one gold letter in ten wrong: the page, and what was compiled for it."""
    programs = set()

    def listen(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event.endswith("/backend_compile_duration"):
            programs.add(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    place = tmp_path_factory.mktemp("planted")
    items = planted.benchmark(place / "set", 191)
    folders = [str(planted.plant(use, place / use)) for use in planted.USES]
    page = experiment.run(config(**{
        "checkpoint": ",".join(folders), "benchmark": "jsonl", "folder": str(items), "budget": 3,
        "switches": "max_new_tokens=12", "rows": 32, "draws": 1000, "gallery": 1, "attention": "clean,donor",
        "conditions.names": "zero,donor,donor_other_label,mean,permuted,self,oracle,answer_blind_to_latents",
        "conditions.sigmas": (0.01, 0.1),
        "conditions.alphas": (), "conditions.per_latent": "", "probes.ladder": (), "probes.controls": 10,
        "alignment.count": 16,
    }), place / "run", progress=False)  # fmt: skip
    jax.monitoring.unregister_event_duration_listener(listen)
    return page, programs


@pytest.fixture(scope="module")
def analyses(audited):
    page, _ = audited
    return {a["name"]: a for a in json.loads(page.with_name("report.json").read_text())}


@pytest.mark.slow
def test_no_program_is_compiled_for_a_single_operation(audited):
    """With `jnp` on an array of the host it would be, for every shape and in every process."""
    _, programs = audited
    assert {"prefill", "sweep"} <= programs and not programs & {*dir(jax.lax), *dir(jax.numpy)}, programs


@pytest.mark.slow
@pytest.mark.parametrize("use, kind", KINDS)
def test_the_verdict_on_a_planted_checkpoint_is_right(analyses, use, kind):
    found = analyses[use]
    assert found["clean"]["accuracy"]["point"] > 0.85 and found["clean"]["triggered"] == 191
    assert found["verdict"]["kind"] == kind, found["verdict"]["sentences"]
    assert found["sham"]["flips"] == 0 and found["sham"]["margin_moved"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("use, kind", KINDS)
def test_the_verdict_on_a_planted_checkpoint_is_right_for_fifty_draws_of_191_items(tmp_path, use, kind):
    """Of a pool five times as large, which the checkpoint answers once under every condition."""
    pool, drawn = 5 * 191, np.random.default_rng(0)
    c = config(**{
        "checkpoint": str(planted.plant(use, tmp_path / use)), "benchmark": "jsonl", "budget": 3, "rows": 191,
        "folder": str(planted.benchmark(tmp_path / "set", pool)), "switches": "max_new_tokens=12",
    })  # fmt: skip
    audit = experiment.prepare(c, experiment.settings_of(c), c.checkpoint, use, tmp_path / "run", False, print)
    names = ["donor", "donor_other_label", "mean", "permuted", "oracle", "answer_blind_to_latents"]
    conditions = corruptions.grid(names, (), (), (), (), 3)
    sweep.run(audit._sweeper("corruption"), audit.items.prompts(), conditions, tmp_path / "sweep")
    found = outcomes(audit.items, sweep.read(tmp_path / "sweep"))
    verdicts = []
    for seed in range(50):
        chosen = np.isin(np.arange(pool), drawn.choice(pool, 191, replace=False))
        verdicts.append(verdict(found.select(chosen), floor(found, audit.items), level=0.95, draws=500, seed=seed))
    assert [v.kind for v in verdicts] == [kind] * 50


@pytest.mark.slow
def test_attention_and_sensitivity_show_the_planted_path(analyses):
    latent = {use: a["attention"]["clean"]["answer"]["latent"] for use, a in analyses.items()}
    image = {use: a["attention"]["clean"]["answer"]["image"] for use, a in analyses.items()}
    assert latent["carrier"] > 0.9 and image["ignored"] > 0.9 and image["carrier"] < 0.05 and latent["ignored"] < 0.05
    moved = {use: sum(a["sensitivity"]["elasticity"]) for use, a in analyses.items()}
    assert moved["carrier"] > 5 * moved["ignored"]


@pytest.mark.slow
def test_the_measured_response_to_small_noise_is_the_gradients(analyses):
    """Within 30 %: one draw of noise for each of some sixty items."""
    for use in ("carrier", "partly"):
        row = next(r for r in analyses[use]["sensitivity"]["response"] if r["condition"] == "noise_0.01")
        assert row["measured"] == pytest.approx(row["predicted"], rel=0.3), use


@pytest.mark.slow
def test_probes_read_the_answer_at_the_latents_of_all_three(analyses):
    """Decodable is not used: the ignored latent holds the answer as well as the one that carries it."""
    for found in analyses.values():
        pair = found["probes"]["pair"]["logistic"]
        assert pair["last_latent"]["accuracy"] > 0.85 and pair["answer"]["accuracy"] > 0.85


@pytest.mark.slow
def test_teacher_forcing_takes_pictures_that_were_encoded_already(tmp_path):
    """Targets are the encoded pictures themselves: twice what is held is twice the targets."""
    c = config(**{
        "checkpoint": str(planted.plant("carrier", tmp_path / "carrier")), "benchmark": "jsonl", "budget": 3, "rows": 4,
        "folder": str(planted.benchmark(tmp_path / "set", 6)), "switches": "max_new_tokens=4",
    })  # fmt: skip
    audit = experiment.prepare(c, experiment.settings_of(c), c.checkpoint, "carrier", tmp_path / "run", False, print)
    held, doubled = Held(1e9), Held(1e9)
    sweep.run(audit._sweeper("corruption"), audit.items.prompts(), [], tmp_path / "sweep", held)
    for ids, (prefix, merged) in held.batches.items():
        doubled.keep(ids, prefix, 2 * merged)
    ways = {"alone": None, "held": held, "doubled": doubled}
    forced = {}
    for name, given in ways.items():
        teacher.run(audit.items, tmp_path / name, count=5, latents=4, compute=audit.compute, progress=False, held=given)
        forced[name], = teacher.read(tmp_path / name)
    assert forced["alone"].items == forced["held"].items and forced["alone"].valid.any()
    # Another program encodes the pictures: fp32 rounding.
    for field in ("predicted", "target"):
        alone, shared = (getattr(forced[name], field) for name in ("alone", "held"))
        np.testing.assert_allclose(shared, alone, atol=1e-4 * np.abs(alone).max(), rtol=0)
    np.testing.assert_array_equal(forced["doubled"].target, 2 * forced["held"].target)
