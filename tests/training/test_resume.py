"""A run that was stopped ends where an undisturbed one ends, bit for bit."""

import shutil
import signal
import time

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow
VARIANTS = ("lvr", "n_lvr", "d_lvr", "p_lvr_2", "p_lvr_3")
# D-LVR's weight falls to zero between the two halves of so short a run.
CHANGES = {"d_lvr": {"reconstruction__points": [[0.0, 0.1], [0.5, 0.0]]}}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and len(a) > 50
    differ = [path for path in a if not np.array_equal(a[path], b[path])]
    assert not differ, f"{len(differ)} of {len(a)} arrays differ: {differ[:3]}"


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """For every variant: four steps in one process, and two there with two more in another; and a fork."""
    folder = tmp_path_factory.mktemp("halves")
    plan = [{"variant": v, "workdir": str(folder / v / "whole"), **CHANGES.get(v, {})} for v in VARIANTS]
    runs.finish(runs.start(*plan))
    for v in VARIANTS:
        shutil.copytree(folder / v / "whole", folder / v / "parts")
        shutil.rmtree(folder / v / "parts" / "checkpoints" / "4")
    fork = {"variant": "d_lvr", "workdir": str(folder / "fork"), "init__fork_from": plan[0]["workdir"]}
    fork |= {"init__fork_at": 0.5, **CHANGES["d_lvr"]}
    runs.finish(runs.start(*({**p, "workdir": p["workdir"].replace("whole", "parts")} for p in plan), fork))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps_a_new_process_and_two_more_equal_four_steps(halves, variant):
    whole, parts = halves / variant / "whole", halves / variant / "parts"
    assert_same(runs.leaves(whole, 4), runs.leaves(parts, 4))
    drop = lambda rows: [{k: v for k, v in row.items() if "second" not in k and "wait" not in k} for row in rows]  # noqa: E731
    assert drop(runs.metrics(whole)) == drop(runs.metrics(parts))
    assert [row["step"] for row in runs.metrics(parts)] == [1, 2, 3, 4]


def test_the_two_halves_saw_other_data(halves):
    """Otherwise a resumed run that begins its data anew would pass."""
    state = [runs.item(halves / "lvr" / "whole", step)["data"] for step in (2, 4)]
    assert state[0] != state[1] and state[0][0]["cursor"] > 0


def test_the_checkpoint_says_what_made_it(halves):
    run = runs.item(halves / "p_lvr_2" / "whole", 4)
    assert run["config"]["data"]["template"] == "p_lvr_2" and run["step"] == 4
    assert run["versions"]["jax"] == __import__("jax").__version__


def test_a_fork_of_the_baseline_equals_the_whole_d_lvr(halves):
    """The first half of D-LVR is the baseline's: forking it, with optimizer and place in the data, changes nothing."""
    assert_same(runs.leaves(halves / "fork", 4), runs.leaves(halves / "d_lvr" / "whole", 4))
    assert [row["step"] for row in runs.metrics(halves / "fork")] == [3, 4]


def _checkpoints(workdir) -> set[str]:
    folder = workdir / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_sigterm_saves_the_step_and_ends_with_status_zero(tmp_path):
    process = runs.start({"variant": "lvr", "workdir": str(tmp_path), "steps": 400, "checkpoint__every": 0})
    waited = time.monotonic()
    while not (tmp_path / "metrics.jsonl").exists() or len(runs.metrics(tmp_path)) < 2:
        assert process.poll() is None and time.monotonic() - waited < 300
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    step = int(runs.finish(process))
    assert 2 <= step < 400
    assert _checkpoints(tmp_path) == {str(step)} and runs.metrics(tmp_path)[-1]["step"] == step
