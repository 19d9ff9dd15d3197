"""A run is the same on one device, on eight, in slices, and on processes, whose devices may interleave."""

import numpy as np
import pytest
import runs

from configs import n_lvr

pytestmark = pytest.mark.slow
MESH = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
SLICES = {"slices": 2, "mesh__data": 2, "mesh__fsdp": 4}
# Noise is drawn, rows are packed, and two shards of the data keep the order whoever reads them.
RUN = {"variant": "n_lvr", "steps": 4, "shards": 2, "rows": 8}


# Collectives between processes, which the one process uses too, sum in the order of the devices' numbers: with its
# devices in the same order every sum is the same. Two micro-batches; shards of four rows, which no process of several
# holds whole.
INTERLEAVED = {"variant": "n_lvr", "steps": 2, "shards": 2, "rows": 8, "accumulate": 2, **MESH}
ORDER = [0, 1, 4, 2, 5, 6, 3, 7]


def processes(run: dict, count: int) -> None:
    """The same run on so many processes, eight devices together."""
    for process in runs.start_processes(run, count, devices=8 // count):
        runs.finish(process)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    runs.finish(runs.start({**RUN, "workdir": str(folder / "one")}))
    cut = ({**RUN, **mesh, "workdir": str(folder / name)} for name, mesh in (("eight", MESH), ("slices", SLICES)))
    runs.finish(runs.start(*cut, devices=8))
    return folder


@pytest.fixture(scope="module")
def moved(folder):
    """Four steps: two on two processes, two more on a single device."""
    place = folder / "moved"
    processes({**RUN, **MESH, "workdir": str(place), "stop_after": 2}, 2)
    runs.finish(runs.start({**RUN, "workdir": str(place)}))
    return folder


def assert_same_run(one, other, steps) -> None:
    a, b = runs.metrics(one), runs.metrics(other)
    assert [row["step"] for row in a] == [row["step"] for row in b] == steps
    for x, y in zip(a, b):
        # Another order of the data would show here: every step has its own counts.
        assert (x["predicted_tokens"], x["latents"]) == (y["predicted_tokens"], y["latents"])
        for key in ("loss_total", "loss_ce", "loss_lvr"):
            np.testing.assert_allclose(y[key], x[key], rtol=2e-5, err_msg=f"{key} of step {x['step']}")
        np.testing.assert_allclose(y["grad_norm"], x["grad_norm"], rtol=2e-4)
    assert len({(row["predicted_tokens"], row["latents"]) for row in a}) > 1


def assert_close(one, other, step: int) -> None:
    """Adam divides a gradient by its own size, so that one that is all rounding moves a parameter by up to the rate
    (5e-4) either way: few may, and all together hardly."""
    a, b = runs.leaves(one, step), runs.leaves(other, step)
    assert a.keys() == b.keys()
    for path in a:
        if "trained" in path:
            x, y = np.asarray(a[path], np.float64), np.asarray(b[path], np.float64)
            assert np.abs(x - y).max() <= 2e-3, path
            assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(x) + 1e-5, path
        elif "frozen" in path:
            np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_eight_devices_equal_one(folder):
    assert_same_run(folder / "one", folder / "eight", [1, 2, 3, 4])
    assert_close(folder / "one", folder / "eight", 4)


def test_two_slices_of_four_devices_equal_one_device(folder):
    assert_same_run(folder / "one", folder / "slices", [1, 2, 3, 4])
    assert_close(folder / "one", folder / "slices", 4)


def test_two_processes_and_then_one_equal_one(moved):
    assert_same_run(moved / "one", moved / "moved", [1, 2, 3, 4])
    assert_close(moved / "one", moved / "moved", 4)


def test_both_processes_and_one_alone_read_the_same_examples(moved):
    """Iterator states of both data shards: positions read, and examples that wait for a row."""
    for step in (2, 4):
        states = [runs.item(moved / run, step)["data"] for run in ("one", "eight", "moved")]
        assert [state["shard"] for state in states[0]] == [[0, 2], [1, 2]]
        assert states[0] == states[1] == states[2]


@pytest.fixture(scope="module")
def interleaved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interleaved")
    for count in (1, 2, 4):
        processes({**INTERLEAVED, "order": ORDER, "workdir": str(folder / str(count))}, count)
    return folder


def last_update(leaves: dict[str, np.ndarray], path: str) -> np.ndarray:
    """The second step of a trained array, from its recorded moments, in fp64; the first had a rate of zero.

    Adam divides a gradient near zero, and its rounding, by its own size: two correct runs part by that much."""
    c = n_lvr.get_config("tiny").optimizer
    mean, square = (
        np.float64(leaves[path.replace("['trained']", f"['optimizer'][1]['{name}']")]) / (1 - beta**2)
        for name, beta in zip(("mu", "nu"), c.betas)
    )
    return c.peak * mean / (np.sqrt(square) + c.eps)


@pytest.mark.parametrize("count, rounding", [(2, 0), (4, 2e-6)])
def test_processes_whose_devices_interleave_equal_one(interleaved, count, rounding):
    """Two are the one bit for bit. Four see the same rows; their parts of a gradient are summed in another order, which
    leaves moments, and parameters beside what Adam makes of their own moments, apart by a few roundings of fp32, and
    the norm of all gradients by the last bit.

    In four processes the second holds rows 2, 3, 6 and 7 of 8, and shares them with the third and the fourth.
    """
    one, other = interleaved / "1", interleaved / str(count)
    a, b = runs.leaves(one, 2), runs.leaves(other, 2)
    assert a.keys() == b.keys() and len(a) > 50
    for path in a:
        apart = np.abs(np.float64(a[path]) - np.float64(b[path]))
        if path.startswith("['trained']"):
            apart -= np.abs(last_update(a, path) - last_update(b, path))
        assert apart.max() <= rounding * np.abs(a[path]).max(), path
    said = [[{k: v for k, v in row.items() if "second" not in k and "wait" not in k} for row in runs.metrics(x)]
            for x in (one, other)]  # fmt: skip
    norms = [[np.float32(row.pop("grad_norm")) for row in rows] for rows in said]
    assert said[0] == said[1] and [row["step"] for row in said[0]] == [1, 2]
    for ours, theirs in zip(*norms):
        assert abs(ours - theirs) <= (np.spacing(theirs) if rounding else 0)
    assert runs.item(one, 2)["data"] == runs.item(other, 2)["data"]
