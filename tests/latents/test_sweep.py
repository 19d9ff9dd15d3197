"""A sweep's result is the same whatever its batches, chunks, order, devices and interruptions."""

import dataclasses
import os
import pathlib
import signal
import time

import jax
import latent_models
import numpy as np
import pytest
import quick
import sweep_programs as programs
from forked import Process
from latent_models import CONFIG

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import sweep as sweeps
from lvr_jax.latents.sources import SourceError
from lvr_jax.latents.sweep_files import SweepError, read

HERE = pathlib.Path(__file__).parent


def environment(**more):
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **more}


def script(*arguments, **env) -> Process:
    return Process([HERE / "sweep_programs.py", *arguments], environment(**env))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """All items in one batch, all conditions at once."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    programs.sweep_into(folder, batches=[range(8)])
    return folder


def equal(ours, theirs):
    """Tokens and flags exactly, numbers to fp32 rounding through the latent loop (1e-3 of the scale; see the golden
    folder's README), items matched by name."""
    assert ours.conditions == theirs.conditions and sorted(ours.items) == sorted(theirs.items)
    order = [ours.items.index(item) for item in theirs.items]
    assert ours.arrays.keys() == theirs.arrays.keys()
    np.testing.assert_array_equal(ours.missing[:, order], theirs.missing)
    for key, value in theirs.arrays.items():
        mine = ours.arrays[key][:, order]
        if value.dtype.kind == "f":
            scale = np.nanmax(np.abs(value))
            np.testing.assert_allclose(mine, value, atol=1e-3 * scale, rtol=0, err_msg=key)
        else:
            np.testing.assert_array_equal(mine, value, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("how", [
    {"batches": [[n] for n in range(8)], "chunk": 1},
    {"batches": [[7, 2, 5], [0, 1, 6], [4, 3]], "chunk": 5, "hold": 0},
], ids=["one by one", "another order, a ragged last batch, prefixes computed twice"])  # fmt: skip
def test_batches_chunks_and_order_do_not_show(how, reference, tmp_path):
    programs.sweep_into(tmp_path / "other", **how)
    equal(read(tmp_path / "other"), read(reference))


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(reference, tmp_path):
    run = script(tmp_path / "eight", "mesh", XLA_FLAGS=quick.flags(8))
    out, error = run.communicate(timeout=300)
    assert run.returncode == 0 and "8 devices" in out, error
    equal(read(tmp_path / "eight"), read(reference))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_identical_files(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    programs.sweep_into(whole, batches=[range(3), range(3, 6), range(6, 8)])
    run = script(killed, "batches", "slowly")
    deadline = time.monotonic() + 300
    while not list(killed.glob("*-00001.npz")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = {p.name: p.stat().st_mtime_ns for p in killed.glob("*.npz")}
    assert before and len(before) < len(list(whole.glob("*.npz")))
    (killed / "first-00002.npz.partial").write_bytes(b"half")           # what a kill in mid-write leaves
    run = script(killed, "batches")
    assert run.wait(timeout=300) == 0, run.communicate()
    files = sorted(p.name for p in whole.iterdir())
    assert sorted(p.name for p in killed.iterdir()) == files
    for name in files:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    after = {p.name: p.stat().st_mtime_ns for p in killed.glob("*.npz")}
    assert all(after[name] == stamp for name, stamp in before.items())  # nothing was done twice


def test_a_sweep_equals_its_conditions_alone(reference, tmp_path):
    """One condition at a time, each in a sweep of its own: the same rows."""
    whole = read(reference)
    for one in (cond.absolute_noise(0.3), cond.replaced("donor")):
        folder = tmp_path / one.name
        programs.sweep_into(folder, batches=[range(8)], conditions=[one])
        alone = read(folder).of(one.name)
        for key, value in whole.of(one.name).items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(alone[key], value, atol=1e-3 * np.nanmax(np.abs(value)), rtol=0)
            else:
                np.testing.assert_array_equal(alone[key], value)


def test_feeding_an_item_its_own_latents_changes_nothing(reference):
    """The sham: whatever differs from clean under it is the instrument's own noise."""
    whole = read(reference)
    clean, sham, donor = (whole.of(name) for name in ("clean", "self", "donor"))
    np.testing.assert_array_equal(sham["token"], clean["token"])
    np.testing.assert_allclose(sham["blocks"], clean["blocks"], atol=1e-4)
    assert (donor["token"] != clean["token"]).any()


def test_every_condition_feeds_what_it_says(reference):
    whole = read(reference)
    clean = whole.of("clean")["blocks"]
    fed = {name: whole.of(name)["blocks"] for name in whole.conditions}
    assert not fed["zero"].any()
    assert not (fed["donor"] == clean).all((-1, -2)).any()                # never its own
    for row in fed["donor"]:
        assert any(np.array_equal(row, other) for other in clean)
    np.testing.assert_allclose(fed["mean"][0, 0, 0], clean.mean((0, 2))[0], atol=1e-5)
    assert (np.ptp(fed["mean"], axis=0) == 0).all()
    np.testing.assert_array_equal(fed["first_repeat"], np.repeat(clean[:, :, :1], clean.shape[2], 2))
    np.testing.assert_array_equal(fed["reversed"], clean[:, :, ::-1])
    embed = programs.embedding(programs.PLAN.slot)
    np.testing.assert_array_equal(fed["slot_embedding"], np.broadcast_to(embed[:, None], clean.shape))
    assert whole.missing[whole.conditions.index("oracle")].tolist() == [n == 5 for n in range(8)]     # 5 has no box


def test_two_programs_a_phase_whatever_the_conditions(tmp_path):
    prefill, sweep = latent_models.prefill._cache_size(), latent_models.sweep._cache_size()
    many = [cond.absolute_noise(0.01 * n) for n in range(1, 8)]
    for number in range(2):
        programs.sweep_into(tmp_path / f"{number}", batches=[range(3), range(3, 6)], conditions=many[number:], chunk=2)
    assert latent_models.prefill._cache_size() - prefill <= 1
    assert latent_models.sweep._cache_size() - sweep == 1


def test_finished_batches_are_not_even_loaded(tmp_path):
    loaded = []
    folder = tmp_path / "lazy"
    how = {"batches": [[0], [1]], "conditions": [cond.zero(), cond.replaced("donor")], "chunk": 1}
    programs.sweep_into(folder, **how, on_load=loaded.append)
    assert len(loaded) == 2                                                # the second phase has their prefixes
    programs.sweep_into(folder, **how, on_load=loaded.append)
    assert len(loaded) == 2


def test_another_sweep_does_not_go_into_the_same_folder(reference):
    with pytest.raises(SweepError, match="seed is 0, expected 1") as error:
        programs.sweep_into(reference, batches=[range(8)], seed=1)
    assert "\n" not in str(error.value)
    with pytest.raises(SweepError, match="weights"):
        programs.sweep_into(reference, batches=[range(8)], weights=1)


def test_arrays_say_whose_they_are(reference, tmp_path):
    """Without their manifest, under another one, or in another's place they are refused by name."""
    for file in reference.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(SweepError, match=r"2 files of arrays \(first-00000.npz\) without their sweep.json"):
        programs.sweep_into(tmp_path, batches=[range(8)])
    manifest = (reference / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(manifest.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(SweepError, match=r"first-00000.npz: is of another sweep"):
        read(tmp_path)
    (tmp_path / "sweep.json").write_text(manifest)
    read(tmp_path)
    (tmp_path / "first-00000.npz").write_bytes((reference / "second-00000.npz").read_bytes())
    with pytest.raises(SweepError, match=r"first-00000.npz: is of another sweep \(.* second 0\)"):
        read(tmp_path)


def test_an_unfinished_or_damaged_sweep_is_named(reference, tmp_path):
    with pytest.raises(SweepError, match=r"no sweep.json"):
        read(tmp_path)
    for file in reference.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "second-00000.npz").write_bytes(b"PK half")
    with pytest.raises(SweepError, match=r"second-00000.npz: cannot be read"):
        read(tmp_path)
    (tmp_path / "second-00000.npz").unlink()
    with pytest.raises(SweepError, match=r"second-00000.npz: is missing, the sweep is not finished"):
        read(tmp_path)


@pytest.mark.parametrize("how, message", [
    ({"conditions": [cond.replaced("oracel")]}, "no source 'oracel', expected one of"),
    ({"conditions": [cond.zero(), dataclasses.replace(cond.zero(), sigma=1.0)]}, "two conditions are named 'zero'"),
    ({"batches": [range(3), range(2, 5)]}, "item 'item2' is in the sweep twice"),
    ({"batches": []}, "no items"),
    ({"keep": ("hidden@nowhere",)}, "positions are"),
    ({"keep": ("states",)}, "cannot keep 'states'"),
    ({"conditions": [cond.replaced("wrong_box")]}, "needs the region 'wrong_box', the prompts have"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_run_is_refused_in_one_line(how, message, tmp_path):
    with pytest.raises((SourceError, cond.ConditionError), match=message) as error:
        programs.sweep_into(tmp_path / "refused", **{"batches": [range(2)], **how})
    assert "\n" not in str(error.value)


def test_a_mesh_of_explicit_axes_is_refused(tmp_path):
    with pytest.raises(SourceError, match="Auto"):
        programs.sweep_into(tmp_path / "explicit", batches=[range(2)], mesh=jax.make_mesh((1,), ("data",)))


def test_chunks_are_as_large_as_memory_allows():
    text = CONFIG.text
    small = sweeps.chunk_size(text, 4, 20, 100, np.float32, 1e6)
    assert 1 <= small < sweeps.chunk_size(text, 4, 20, 100, np.float32, 1e7)
    assert sweeps.chunk_size(text, 4, 20, 100, np.float32, 1) == 1
    assert jax.device_count() == 1
