"""A study in blocks trains every run once, stores what finished apart from checkpoints, and does not do it again."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Process
from ml_collections import ConfigDict

from study import jobs as study
from study import store
from study.blocks import Blocks, chosen
from study.workers import JobFailed, Workers

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def config(tmp_path: Path, blocks: dict[str, str], predictions=(), **changes) -> ConfigDict:
    from configs import full_study

    c = full_study.get_config()
    c.blocks, c.order, c.predictions = ConfigDict(blocks), tuple(blocks), predictions
    c.results = str(tmp_path / "results")
    for name, value in changes.items():
        c[name] = value
    return c


TWO = {"lambdas": "plain: lvr lambda=0|0.1", "variants": "plain: lvr, d_lvr until=0.3; bottleneck: lvr"}


# Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_two_blocks_ask_for_in_other_words_is_one_run_of_both(tmp_path):
    found = Blocks(config(tmp_path, TWO, seeds=(0,)), tmp_path).runs
    assert [(run.name, run.blocks) for run in found] == [
        ("lvr lambda=0", ("lambdas",)), ("lvr", ("lambdas", "variants")), ("d_lvr until=0.3", ("variants",)),
        ("bottleneck: lvr", ("variants",)),
    ]  # fmt: skip


def test_blocks_are_finished_in_order_and_runs_do_not_need_each_other(tmp_path):
    jobs = study.jobs(config(tmp_path, TWO, seeds=(0, 1)), tmp_path)
    ranks = {job.name: job.rank for job in jobs}
    assert ranks["audit lvr lambda=0 seed 1"] < ranks["train d_lvr until=0.3"] < ranks["train bottleneck: lvr seed 1"]
    assert all(job.after == ("convert tiny",) for job in jobs if job.stage == "train")
    assert all("configs/prism.py:light" in job.command for job in jobs if job.stage == "audit")


def test_a_state_comes_after_its_run_and_trains_nothing_of_its_own(tmp_path):
    """Named before it, and where the run's own result is there already."""
    c = config(tmp_path, {"time": "plain: lvr at=60|120, lvr"}, seeds=(0,))
    found = Blocks(c, tmp_path)
    assert [run.name for run in found.runs] == ["lvr", "lvr at=60", "lvr at=120"]
    assert [each["axes"]["at"] for each in found.planned()] == [300, 60, 120]
    jobs = {job.name: job for job in study.jobs(c, tmp_path, without={"lvr"})}
    assert "audit lvr" not in jobs and "train lvr" in jobs["train lvr at=60"].after
    assert {"--config.steps=60", "--config.init.fork_at=1.0"} <= set(jobs["train lvr at=60"].command)
    assert jobs["train lvr at=60"].seconds < 5 < jobs["train lvr"].seconds


@pytest.mark.parametrize("blocks, said", [
    ({"one": "lvr"}, "blocks.one has 'lvr', expected SETTING: RUNS"),
    ({"one": "dark: lvr"}, "blocks.one has 'dark: lvr', expected SETTING: RUNS"),
    ({"one": "plain: lvr, lvr lambda=0.1"}, "blocks.one asks for 'lvr' twice"),
    ({"one": ""}, "blocks name nothing to train"),
    ({"one": "plain: lvr warmth=3"}, "no field 'warmth'"),
    ({"one": "plain: lvr peak=-1"}, "lvr peak=-1: configs/lvr.py: optimizer.peak is -1.0, expected"),
    ({"one": "plain: lvr lambda=1|-1"}, "lvr lambda=-1: configs/lvr.py: reconstruction.points is"),
    ({"one": "plain: lvr lambda=nan"}, "lvr lambda=nan: configs/lvr.py: reconstruction.points is"),
    ({"one": "plain: lvr target=foo"}, "objective.target is 'foo', expected one of"),
    ({"one": "plain: lvr head=foo"}, "latent_head is 'foo', expected '' or 'simple' or 'glu'"),
    ({"one": "plain: lvr route=head_only"}, "objective.route is 'head_only' and the network has no latent head"),
    ({"one": "plain: lvr at=1.5"}, "lvr at=1.5: at is '1.5', expected a step"),
    ({"one": "plain: lvr at=99999"}, "lvr at=99999: at is 99999, expected a step, 1 to 300"),
])  # fmt: skip
def test_blocks_that_cannot_be_are_refused_by_name(tmp_path, blocks, said):
    with pytest.raises(ValueError, match=said):
        Blocks(config(tmp_path, blocks), tmp_path)


# Keys ------------------------------------------------------------------------------------------------------------


def keys(tmp_path, **changes) -> dict[str, str]:
    return Blocks(config(tmp_path, TWO, **changes), tmp_path).keys


def test_a_key_is_of_what_the_run_reads(tmp_path):
    before = keys(tmp_path)
    assert len(set(before.values())) == len(before)
    assert keys(tmp_path / "elsewhere") == before, "wherever it is done"
    assert keys(tmp_path, workers=7, draws=100, only="report") == before, "and however"
    for changes in ({"questions": 10}, {"audited": 10}, {"conditions": "mean"}):
        assert not set(keys(tmp_path, **changes).values()) & set(before.values()), changes
    shorter = config(tmp_path, TWO)
    shorter.train.steps = 10
    assert not set(Blocks(shorter, tmp_path).keys.values()) & set(before.values())


def test_a_key_leaves_out_what_training_does_not_read(tmp_path, monkeypatch):
    from configs import lvr

    before, made = keys(tmp_path), lvr.get_config

    def other(size, **fields):
        c = made(size)
        c.update_from_flattened_dict(fields)
        return c

    monkeypatch.setattr(lvr, "get_config", lambda size="3b": other(size, **{"hang_minutes": 7.0, "log.every": 3}))
    assert keys(tmp_path) == before
    monkeypatch.setattr(lvr, "get_config", lambda size="3b": other(size, **{"optimizer.clip": 7.0}))
    changed = keys(tmp_path)
    assert {name for name in before if changed[name] != before[name]} == {n for n in before if "d_lvr" not in n}


def test_another_optimizer_in_the_shared_config_leaves_the_full_studys_recipe_as_it_was(tmp_path, monkeypatch):
    """Neither results nor what is trained already are done again, and the command says the study's own."""
    from configs import common

    c, tiny = config(tmp_path, TWO), common._tiny
    before, made = Blocks(c, tmp_path).keys, {job.name: job.key for job in study.jobs(c, tmp_path)}
    other = {"peak": 4e-3, "betas": (0.8, 0.9)}
    monkeypatch.setattr(common, "_tiny", lambda made: (tiny(made), made.optimizer.update(other))[0])
    assert Blocks(c, tmp_path).keys == before
    jobs = study.jobs(c, tmp_path)
    assert {job.name: job.key for job in jobs} == made
    for said in ("--config.optimizer.peak=0.001", "--config.optimizer.betas=(0.9, 0.999)"):
        assert all(said in job.command for job in jobs if job.stage == "train"), said
    asked = Blocks(config(tmp_path, {"one": "plain: lvr peak=0.001, lvr peak=0.004"}), tmp_path)
    assert [run.name for run in asked.runs][:2] == ["lvr", "lvr peak=0.004"], "the study's own rate is no axis"
    c.train.optimizer = ConfigDict()
    assert not set(Blocks(c, tmp_path).keys.values()) & set(before.values()), "without it, it is the config's"


def test_what_came_after_results_were_stored_is_part_of_a_key_where_it_is_used(tmp_path):
    """The heads, targets and shares of the dial are runs of their own; what stands for their absence is no axis."""
    c = config(tmp_path, {"heads": "plain: lvr, lvr head=glu, lvr head=glu route=head_only, lvr target=wrong_box",
                          "dial": "plain: lvr; masked: lvr dark=0.25|1"}, seeds=(0,))  # fmt: skip
    blocks = Blocks(c, tmp_path)
    assert len(set(blocks.keys.values())) == len(blocks.runs) == 6
    axes = {each["name"]: each["axes"] for each in blocks.planned()}
    assert {name: (a["dark"], a["head"]) for name, a in axes.items()} == {
        "lvr": (0.0, "none"), "lvr head=glu": (0.0, "glu"), "lvr head=glu route=head_only": (0.0, "glu"),
        "lvr target=wrong_box": (0.0, "none"), "masked: lvr dark=0.25": (0.25, "none"), "masked: lvr": (1.0, "none"),
    }  # fmt: skip
    commands = {job.name: job.command for job in study.jobs(c, tmp_path)}
    assert "--config.data.sources.digits.mask_share=0.25" in commands["train masked: lvr dark=0.25"]
    assert "--benchmark.mask_share=0.25" in commands["evaluate masked: lvr dark=0.25"]
    assert any("mask_share=0.25" in each for each in commands["audit masked: lvr dark=0.25"])
    with pytest.raises(ValueError, match="lvr dark=0.5: dark is an axis of the setting masked, expected masked: lvr"):
        Blocks(config(tmp_path, {"dial": "plain: lvr dark=0.5"}), tmp_path)


def test_analogies_are_trained_scored_and_audited_as_such_from_a_base_of_their_own(tmp_path):
    c = config(tmp_path, {"one": "plain: lvr; rotation: rotation_lvr; rotation_query: rotation_lvr"}, seeds=(0,))
    assert len(set(Blocks(c, tmp_path).keys.values())) == 3
    jobs = {job.name: job for job in study.jobs(c, tmp_path)}
    assert {"convert tiny", "convert tiny_rotation"} <= set(jobs)
    for name, query in (("rotation: rotation_lvr", False), ("rotation_query: rotation_lvr", True)):
        train, evaluate, audit = (jobs[f"{stage} {name}"].command for stage in ("train", "evaluate", "audit"))
        assert jobs[f"train {name}"].after == ("convert tiny_rotation",)
        assert ("--config.data.sources.rotation.mask_query=True" in train) is query
        assert evaluate[evaluate.index("--benchmark") + 1] == "rotation" and "--benchmark.split=test" in evaluate
        assert ("--benchmark.mask_query=True" in evaluate) is query is any("'mask_query'" in a or "mask_query=True" in a
                                                                             for a in audit)  # fmt: skip
        assert "--config.benchmark=rotation" in audit and "--config.budget=1" in audit
    assert "digit_search" in jobs["evaluate lvr"].command
    for wrong in ("rotation: lvr", "plain: rotation_lvr"):
        with pytest.raises(ValueError, match=r"has no field 'data\.sources\.(rotation|digits)'"):
            Blocks(config(tmp_path, {"one": wrong}), tmp_path)


def test_every_committed_result_has_the_key_of_its_run(tmp_path):
    """What is stored is of what the study asks for now: no field that came later makes it another run."""
    from configs import full_study

    blocks = Blocks(full_study.get_config(), tmp_path)
    stored = {path.stem: json.loads(path.read_text())["key"] for path in blocks.store.folder.glob("*.json")}
    assert stored == {run.folder.name: blocks.keys[run.name] for run in blocks.runs if run.folder.name in stored}
    assert len(stored) >= 16


# Results ---------------------------------------------------------------------------------------------------------


def test_what_is_stored_by_its_key_is_not_done_again_and_another_key_is(tmp_path):
    c = config(tmp_path, TWO, seeds=(0,))
    blocks = Blocks(c, tmp_path)
    run = blocks.runs[0]
    blocks.store.write(run, blocks.keys[run.name], {}, {})
    assert Blocks(c, tmp_path / "elsewhere").finished() == {run.name}
    assert run.name not in {job.run for job in study.jobs(c, tmp_path, blocks.finished())}
    assert not Blocks(config(tmp_path, TWO, seeds=(0,), questions=5), tmp_path).finished()
    blocks.store.path(run).write_text("{")
    assert not blocks.finished(), "nor is a damaged file one"


def test_a_finished_result_of_another_recipe_is_never_written_over(tmp_path):
    """Neither by a run that fails nor by one that ends; where it is asked for, before anything runs."""
    first, other = (Blocks(config(tmp_path, TWO, seeds=(0,), **more), tmp_path) for more in ({}, {"questions": 5}))
    run = first.runs[0]
    kept = first.store.write(run, first.keys[run.name], {}, {}).read_bytes()
    for measured in ({}, {"status": store.FAILED, "error": "no more tea"}):
        with pytest.raises(ValueError, match="the result of 'lvr.*' in another recipe or of another base; name"):
            other.store.write(run, other.keys[run.name], {}, measured)
    jobs = [each for each in study.jobs(other.config, tmp_path) if each.run == run.name]
    with pytest.raises(ValueError, match="in another recipe"):
        other.run(jobs, jobs, Workers(tmp_path, 1), False)
    assert first.store.path(run).read_bytes() == kept and not (tmp_path / "jobs").exists()
    other.run([], jobs, Workers(tmp_path, 1), False)        # --config.only=report


def test_a_failed_run_is_stored_as_failed_and_the_others_go_on(tmp_path):
    c = config(tmp_path, {"one": "plain: lvr, lvr lambda=0"}, seeds=(0,))
    blocks = Blocks(c, tmp_path)
    bad, good = blocks.runs

    def job(name, run, code, *after):
        made, program = tmp_path / f"{name}.out", tmp_path / f"{name}.py"
        program.write_text(f"made = {str(made)!r}\n{code}")
        return study.Job(name, "train", (str(program),), after, made, 1.0, "1", run=run)

    jobs = [job("a", bad.name, "raise SystemExit('no more tea')"), job("b", bad.name, "open(made, 'w')", "a"),
            job("c", good.name, "open(made, 'w')")]  # fmt: skip
    with pytest.raises(JobFailed, match="1 jobs failed, the same command tries them again: a"):
        blocks.run(jobs, jobs, Workers(tmp_path, 1), False)
    assert (tmp_path / "c.out").exists() and not (tmp_path / "b.out").exists()
    found = blocks.store.read(bad)
    assert found["status"] == store.FAILED and found["error"] == "a: no more tea" and not blocks.finished()


def test_the_committed_results_have_the_format_and_add_up():
    """Counts of every condition are of the clean pass; accuracy is the blind part and the latents' part."""
    for path in sorted((ROOT / "lvr_jax/assets/full_study/results").glob("*.json")):
        result = json.loads(path.read_text())
        assert result["format"] == store.FORMAT, path.name
        if result["status"] == store.FAILED:
            assert result["error"], path.name
            continue
        assert set(store.MEASURED) | {"training", "seconds", "axes", "key"} <= set(result), path.name
        audit, blind = result["audit"], result["conditions"]["answer_blind_to_latents"]
        assert (blind["n"], blind["clean"]) == (audit["items"], audit["right"]), path.name
        for name, c in result["conditions"].items():
            assert c["clean"] + c["gained"] - c["lost"] == c["right"], (path.name, name)
            assert c["delta"] == pytest.approx((c["right"] - c["clean"]) / c["n"]), (path.name, name)


# Predictions -----------------------------------------------------------------------------------------------------

SOUND = {"name": "p", "block": "lambdas", "statement": "s", "direction": "up", "quantity": "difference",
         "of": "accuracy", "where": {"lambda": 0.1}, "against": {"lambda": 0.0}, "low": 0.0, "high": None}  # fmt: skip


@pytest.mark.parametrize("changes, said", [
    ({"quantity": "luck"}, "has quantity 'luck'"), ({"block": "variant"}, "is of block 'variant'"),
    ({"of": "beauty"}, "has of 'beauty'"), ({"of": 5}, "has of 5"),
    ({"of": "delta nonsense"}, "has of 'delta nonsense'"),
    ({"of": "follows zero"}, "has of 'follows zero'"), ({"low": None}, "expected a number for one or both"),
    ({"low": "a"}, "has low 'a' and high None"), ({"low": 5.0, "high": 1.0}, "expected low below high"),
    ({"low": float("nan")}, "has low nan"), ({"where": "lvr"}, "has where 'lvr', expected a dict of axes"),
 ({"x": "cosine"}, "or have, 'x'"),
    ({"where": {"lambda": 7}}, "chooses no run of lambdas"), ({"where": {"warmth": 7}}, "chooses by 'warmth'"),
    ({"direction": "left"}, "has direction 'left'"),
])  # fmt: skip
def test_a_prediction_that_nothing_can_decide_is_refused(tmp_path, changes, said):
    Blocks(config(tmp_path, TWO, (SOUND,)), tmp_path)
    with pytest.raises(ValueError, match=said):
        Blocks(config(tmp_path, TWO, (SOUND | changes,)), tmp_path)


@pytest.mark.parametrize("predictions, said", [
    ((SOUND, SOUND), "predictions: 'p' is there twice"), ((5,), "predictions: 5, expected a dict"),
    (({**{k: v for k, v in SOUND.items() if k != "against"}, "quantity": "within", "x": "cosine", "by": "warmth"},),
     "has by 'warmth', expected one of"),
])  # fmt: skip
def test_predictions_are_dicts_with_names_of_their_own(tmp_path, predictions, said):
    with pytest.raises(ValueError, match=said):
        Blocks(config(tmp_path, TWO, predictions), tmp_path)


def test_a_block_is_named_once_in_the_order(tmp_path):
    with pytest.raises(ValueError, match="order names block 'lambdas' twice"):
        Blocks(config(tmp_path, TWO, order=("lambdas", "variants", "lambdas")), tmp_path)


def test_a_folder_in_a_results_place_is_named(tmp_path):
    blocks = Blocks(config(tmp_path, TWO), tmp_path)
    blocks.store.path(blocks.runs[0]).mkdir(parents=True)
    with pytest.raises(ValueError, match="lvr-lambda-0.json: is a folder, expected the result of 'lvr lambda=0'"):
        blocks.finished()


def test_the_full_studys_predictions_choose_runs_and_have_names_of_their_own(tmp_path):
    from configs import full_study

    c = full_study.get_config()
    Blocks(c, tmp_path)
    assert len({p["name"] for p in c.predictions}) == len(c.predictions)
    assert {p["block"] for p in c.predictions} == set(c.order), "every block is predicted"


def test_a_prediction_chooses_among_the_results_of_its_block():
    results = [{"axes": {"lambda": v}, "setting": "plain", "config": "lvr", "seed": s, "blocks": [b]}
               for v in (0.0, 0.1) for s in (0, 1) for b in ("lambdas", "variants")]  # fmt: skip
    found = chosen(results, SOUND)
    assert [(r["axes"]["lambda"], r["seed"]) for r in found] == [(0.1, 0), (0.1, 1)]
    assert all(r["blocks"] == ["lambdas"] for r in found)
    assert len(chosen(results, SOUND | {"where": {"lambda": (0.0, 0.1), "seed": 1}})) == 2
    assert len(chosen(results, SOUND, "against")) == 2


# The whole -------------------------------------------------------------------------------------------------------

MINIATURE = """
from configs import full_study
from ml_collections import ConfigDict

def get_config():
    c = full_study.get_config()
    c.blocks = ConfigDict({{"one": "plain: lvr", "two": "plain: lvr, lvr at=1; bottleneck: lvr"}})
    c.order, c.predictions, c.seeds, c.results = ("one", "two"), (), (0,), {results!r}
    c.checkpoint = {checkpoint!r}
    c.train.steps, c.train.rows, c.questions, c.audited, c.draws, c.workers = 2, 2, 6, 6, 100, 1
    return c
"""


def miniature(folder: Path, *more: str, results: Path, checkpoint: Path) -> Process:
    folder.mkdir(exist_ok=True)
    (folder / "miniature.py").write_text(MINIATURE.format(results=str(results), checkpoint=str(checkpoint)))
    return Process([ROOT / "tools/reproduce.py", "--config", folder / "miniature.py", "--workdir", folder / "runs",
                    "--noprogress", *more])  # fmt: skip


def measured(results: Path) -> dict[str, dict]:
    """What is stored, but for the time that it took."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in found.items()}


@pytest.mark.slow
def test_two_blocks_end_to_end_and_killed_in_between_with_the_same_results(tmp_path, two_layers_checkpoint):
    """Killed when the first result is stored, it goes on to the same results as a study that was left alone, and makes
    its report from results without a checkpoint."""
    study_in = functools.partial(miniature, checkpoint=two_layers_checkpoint)
    whole = study_in(tmp_path / "whole", results=tmp_path / "whole-results")
    out, error = whole.communicate(timeout=900)
    assert whole.returncode == 0, error
    found = measured(tmp_path / "whole-results")
    assert set(found) == {"lvr.json", "lvr-at-1.json", "bottleneck-lvr.json"}
    assert found["lvr.json"]["blocks"] == ["one", "two"] and found["bottleneck-lvr.json"]["cosine"] is not None

    results = tmp_path / "killed-results"
    killed = study_in(tmp_path / "killed", results=results)
    while not list(results.glob("*.json")):
        assert killed.poll() is None, killed.communicate()
        try:
            killed.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
    killed.kill()
    killed.communicate()
    again = study_in(tmp_path / "killed", results=results)
    assert again.wait(900) == 0, again.communicate()
    assert measured(results) == found

    report = study_in(tmp_path / "report", "--config.only=report", results=results)
    out, error = report.communicate(timeout=120)
    assert report.returncode == 0 and "nothing to train or measure" in error, error
    assert "bottleneck: lvr" in out and not (tmp_path / "report/runs/runs").exists()
