"""The stream holds every example once, goes on where it stopped, and never loses a bad record in silence."""

import functools
import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvr_jax.data.chat import encode_example
from lvr_jax.data.packing import Budget, collate
from lvr_jax.data.pipeline import Pipeline, Settings, Source
from lvr_jax.data.progress import reshard
from lvr_jax.data.records import plain_folder
from lvr_jax.data.sample import DataError, Example, SampleError
from lvr_jax.data.skips import SkipLog, TooManySkipsError
from lvr_jax.data.synthetic import synthetic_batches
from lvr_jax.data.templates import LVR
from lvr_jax.data.tokenizers import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = settings(max_examples=20, deadline=None)
BUDGET = Budget(64, 1)


class Numbers:
    """A light source: its items are (name, number), of which every `damaged`-th cannot be read."""

    def __init__(self, name, count, damaged=0):
        self.name, self.count, self.damaged, self.path = name, count, damaged, f"{name}.jsonl"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.damaged and index % self.damaged == 0:
            raise SampleError(f"{self.path}: record {index}: no answer")
        return self.name, index


def encode(item):
    """Text of 3 to 40 tokens, by its number."""
    name, index = item
    T = 3 + (index * 7919 + len(name)) % 38
    zeros = functools.partial(np.zeros, T)
    return Example(
        id=f"{name}-{index}", category="", tokens=np.full(T, index, np.int32), positions=np.zeros((3, T), np.int32),
        vision_slot=np.full(T, -1, np.int32), loss_mask=zeros(bool), stage=zeros(np.int8), group=zeros(np.int32),
        role=zeros(np.int8), patches=np.zeros((0, 588), np.uint8), grids=np.zeros((0, 3), np.int32),
    )  # fmt: skip


def ids(batches):
    return [name for batch in batches for row in batch.ids for name in row]


def digest(batch):
    h = hashlib.sha256(json.dumps(batch.ids).encode())
    for key in sorted(batch.arrays):
        h.update(key.encode() + batch.arrays[key].tobytes())
    return h.hexdigest()


def pipeline(shard=(0, 1), count=50, **changes):
    options = {key: changes.pop(key) for key in ("workers", "prefetch", "skip_log") if key in changes}
    sources = changes.pop("sources", [Source(Numbers("a", count), "a"), Source(Numbers("b", 20), "b")])
    spec = {"budget": BUDGET, "rows": 2, "epochs": 1, "lookahead": 6, "seed": 3} | changes
    return Pipeline(sources, encode, Settings(**spec), shard_index=shard[0], shard_count=shard[1], **options)


# --- nothing lost, nothing twice ----------------------------------------------------------------------------------


@QUICK
@given(st.sampled_from([1, 2, 3, 8]), st.integers(1, 90), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_holds_every_example_once_over_any_number_of_shards(shards, count, rows, lookahead, seed):
    settings = {"count": count, "rows": rows, "lookahead": lookahead, "seed": seed}
    found = [ids(pipeline((k, shards), **settings)) for k in range(shards)]
    assert sorted(sum(found, [])) == sorted([f"a-{i}" for i in range(count)] + [f"b-{i}" for i in range(20)])


def test_epochs_differ_in_order_and_each_is_complete():
    order = ids(pipeline(epochs=3, lookahead=1, max_per_row=1))
    epochs = [order[i : i + 70] for i in (0, 70, 140)]
    assert len({tuple(e) for e in epochs}) == 3 and len({tuple(sorted(e)) for e in epochs}) == 1
    assert order != ids(pipeline(epochs=3, lookahead=1, max_per_row=1, seed=4))


def test_without_packing_or_shuffle_rows_are_the_source_in_order():
    batches = list(pipeline(shuffle=False, max_per_row=1, rows=3))
    rows = [row for batch in batches for row in batch.ids]
    assert rows[:70] == [(f"a-{i}",) for i in range(50)] + [(f"b-{i}",) for i in range(20)]
    assert rows[70:] == [(), ()] and not batches[-1].arrays["segment"][1:].any(), "the last batch is padded"


def test_rows_of_the_stream_are_the_rows_of_the_packer():
    for batch in pipeline():
        rows = [[encode((name[0], int(name[2:]))) for name in row] for row in batch.ids]
        for key, value in collate(rows, BUDGET).items():
            np.testing.assert_array_equal(batch.arrays[key], value)


def test_sources_are_drawn_by_weight_and_go_round_on_their_own():
    sources = [Source(Numbers("a", 40), "a", 3), Source(Numbers("b", 10), "b", 1.0)]
    order = ids(pipeline(sources=sources, epochs=4, lookahead=1, max_per_row=1))
    a, b = ([n for n in order if n[0] == name] for name in "ab")
    assert abs(len(a) - 150) <= 1 and len(order) == 200
    for name, found, size in (("a", a, 40), ("b", b, 10)):
        for k in range(len(found) // size):
            assert sorted(found[k * size : k * size + size]) == sorted(f"{name}-{i}" for i in range(size))
    assert max(np.diff([i for i, n in enumerate(order) if n[0] == "b"])) <= 5, "b comes at an even pace"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sources": []}, "expected one or more"),
        ({"sources": [Source(Numbers("a", 0), "a")]}, r"\('a', 0\).*none empty"),
        ({"sources": [Source(Numbers("a", 1), "a"), Source(Numbers("b", 1), "a")]}, "a different name"),
        ({"sources": [Source(Numbers("a", 1), "a", 1.0), Source(Numbers("b", 1), "b")]}, r"\[1.0, None\]"),
        ({"shard": (2, 2)}, "shard_index 2: expected 0 to 1"),
        ({"rows": 0}, "rows = 0: expected a whole number, at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(change, message):
    with pytest.raises(DataError, match=message):
        iter(pipeline(**change))


# --- stopping and going on ----------------------------------------------------------------------------------------


@pytest.mark.slow
@QUICK
@given(st.integers(0, 12), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2))
def test_a_restored_stream_goes_on_identically(stop, lookahead, shards, prefetch):
    make = functools.partial(pipeline, (shards - 1, shards), epochs=3, lookahead=lookahead, prefetch=prefetch)
    whole = [digest(batch) for batch in make()]
    first = iter(make())
    begun = [digest(next(first)) for _ in range(min(stop, len(whole)))]
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    rest = iter(make())
    rest.set_state(state)
    assert begun + [digest(batch) for batch in rest] == whole


@pytest.mark.slow
@QUICK
@given(st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 8), (8, 2)]), st.integers(0, 4), st.integers(1, 8))
def test_another_number_of_shards_goes_on_without_loss_or_repetition(change, stop, lookahead):
    before, after = change
    make = functools.partial(pipeline, count=80, epochs=2, lookahead=lookahead, rows=1)
    found, states = [], []
    for k in range(before):
        batches = iter(make((k, before)))
        for _ in range(stop + k % 2):       # shards need not stop at the same batch
            found += ids([next(batches)])
        states.append(json.loads(json.dumps(batches.get_state())))
    states = reshard(states, after)
    middle = []
    for k in range(after):                  # and on the way it changes once more, to one shard
        batches = iter(make((k, after)))
        batches.set_state(json.loads(json.dumps(states[k])))
        for batch in (next(batches, None),):
            found += ids([batch] if batch else [])
        middle.append(batches.get_state())
    last = iter(make((0, 1)))
    last.set_state(reshard(middle, 1)[0])
    found += ids(last)
    assert sorted(found) == sorted(2 * ([f"a-{i}" for i in range(80)] + [f"b-{i}" for i in range(20)]))
    assert last.get_state()["skips"] == {"seen": 200, "skipped": {}}


def test_a_state_of_another_run_or_shard_is_refused():
    state = iter(pipeline()).get_state()
    with pytest.raises(DataError, match="run is .*'seed': 3.*, this pipeline has .*'seed': 4"):
        iter(pipeline(seed=4)).set_state(state)
    with pytest.raises(DataError, match="of shard 0 of 1, this is shard 1 of 2 .*reshard"):
        iter(pipeline((1, 2))).set_state(state)
    with pytest.raises(DataError, match="expected all shards of one run, each once"):
        reshard([state, state], 1)


def test_a_failure_in_the_middle_of_a_batch_loses_nothing():
    class Flaky(Numbers):
        broken = {11, 29}

        def __getitem__(self, index):
            if index in self.broken:
                self.broken.remove(index)
                raise OSError("the network is down")
            return super().__getitem__(index)

    batches, found = iter(pipeline(sources=[Source(Flaky("a", 50), "a")])), []
    for _ in range(2):
        with pytest.raises(OSError, match="network"):
            while True:
                found += ids([next(batches)])
    found += ids(batches)
    assert sorted(found) == sorted(f"a-{i}" for i in range(50))
    assert batches.get_state()["skips"] == {"seen": 50, "skipped": {}}


def _run_shard(shard, start, stop, output):
    """One real process of a run, with a worker process of its own: batches from a state on, until `stop` of them."""
    batches = iter(pipeline(shard, epochs=2, workers=1, prefetch=1))
    if start is not None:
        batches.set_state(start)
    found = [digest(batch) for _, batch in zip(range(stop), batches)] if stop else [digest(b) for b in batches]
    Path(output).write_text(json.dumps({"found": found, "state": batches.get_state()}))
    batches.close()


def _run_processes(tmp_path, starts, stop):
    context = multiprocessing.get_context("spawn")
    files = [tmp_path / f"shard-{k}.json" for k in range(len(starts))]
    running = [
        context.Process(target=_run_shard, args=((k, len(starts)), start, stop, str(files[k])))
        for k, start in enumerate(starts)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_real_processes_with_worker_processes_stop_and_go_on_identically(tmp_path, processes):
    first = _run_processes(tmp_path, [None] * processes, 4)
    second = _run_processes(tmp_path, [part["state"] for part in first], 0)
    for k in range(processes):
        whole = [digest(batch) for batch in pipeline((k, processes), epochs=2)]         # no workers, no stop
        assert len(first[k]["found"]) == 4 and first[k]["found"] + second[k]["found"] == whole


# --- damaged records ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    """120 records; 5 % of them damaged, by turns: a truncated image, a box out of range, a missing answer."""
    folder = tmp_path_factory.mktemp("damaged")
    rng = np.random.default_rng(0)
    bad, lines = {}, []
    for i in range(120):
        file = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (56, 84, 3), np.uint8)).save(file)
        record = {"image": file.name, "question": "what?", "answer": "this", "boxes": [[0.1, 0.1, 0.6, 0.9]]}
        if i % 20 == 7:
            kind = len(bad) % 3
            bad[i] = (f"{i}.png: cannot be read", f"record {i}: boxes[0]", f"record {i}: answer")[kind]
            if kind == 0:
                file.write_bytes(file.read_bytes()[:300])
            elif kind == 1:
                record["boxes"] = [[0.1, 0.1, 1.6, 0.9]]
            else:
                del record["answer"]
        lines.append(json.dumps(record))
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder, bad


def damaged_pipeline(folder, log, **changes):
    tokenizer = load_tokenizer(GOLDEN / "tokenizer.json")
    encode = functools.partial(
        encode_example, tokenizer=tokenizer, template=LVR, min_pixels=784, max_pixels=10**6
    )
    options = {key: changes.pop(key) for key in ("workers",) if key in changes}
    spec = {"budget": Budget(512, 16), "rows": 2, "epochs": 1, "max_skip_share": 0.06, "lookahead": 8} | changes
    return Pipeline([Source(plain_folder(folder), "mine")], encode, Settings(**spec), skip_log=log, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_records_are_skipped_counted_and_listed(damaged_folder, tmp_path, workers):
    folder, bad = damaged_folder
    log = tmp_path / "lists" / "skips.jsonl"
    batches = iter(damaged_pipeline(folder, log, workers=workers))
    found = ids(batches)
    name = folder.name
    assert sorted(found) == sorted(f"{name}-{i}" for i in range(120) if i not in bad)
    assert batches.get_state()["skips"] == {"seen": 120, "skipped": {"mine": 6}}
    listed = {entry["index"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    assert listed.keys() == bad.keys()
    for index, entry in listed.items():
        assert entry["source"] == "mine" and entry["file"] == str(folder / "records.jsonl")
        assert bad[index] in entry["reason"] and "\n" not in entry["reason"]
    assert {entry["error"] for entry in listed.values()} == {"ImageError", "RecordError"}


def test_skips_are_counted_and_listed_once_across_a_restart(damaged_folder, tmp_path):
    folder, bad = damaged_folder
    log = tmp_path / "skips.jsonl"
    first = iter(damaged_pipeline(folder, log))
    next(first), next(first)
    state = first.get_state()
    list(first)                                                     # goes on, and is killed: its state is lost
    log.write_text(log.read_text() + '{"position": 7, "half')       # in the middle of a line, at that
    second = iter(damaged_pipeline(folder, log))
    second.set_state(state)
    list(second)
    assert second.get_state()["skips"] == {"seen": 120, "skipped": {"mine": 6}}
    assert sorted(json.loads(line)["index"] for line in log.read_text().splitlines()) == sorted(bad)


def test_too_many_damaged_records_stop_the_run_in_one_line(damaged_folder, tmp_path):
    folder, _ = damaged_folder
    log = tmp_path / "skips.jsonl"
    message = r"skipped \d+ of \d+ examples \(\d.\d%\), max_skip_share is 2.0%; last: mine\[\d+\]: .*; all are listed"
    for patience in (40, 10**6):            # on the way, and at the end of the data at the latest
        with pytest.raises(TooManySkipsError, match=message) as error:
            list(damaged_pipeline(folder, log, max_skip_share=0.02, patience=patience))
        assert "\n" not in str(error.value) and str(log) in str(error.value)


def test_a_source_without_a_sound_record_is_not_an_empty_stream():
    with pytest.raises(TooManySkipsError, match="skipped 9 of 9"):
        list(pipeline(sources=[Source(Numbers("a", 9, damaged=1), "a")]))


def test_an_example_larger_than_the_budget_is_skipped_by_name(tmp_path):
    log = tmp_path / "skips.jsonl"
    found = ids(pipeline(budget=Budget(39, 1), max_skip_share=0.2, skip_log=log))
    listed = [json.loads(line) for line in log.read_text().splitlines()]
    large = [i for i in range(50) if len(encode(("a", i)).tokens) > 39]
    assert large and {entry["index"] for entry in listed if entry["source"] == "a"} == set(large)
    assert len(found) + len(listed) == 70
    assert listed[0]["error"] == "BudgetError" and "needs Budget(tokens=40" in listed[0]["reason"]


def test_a_fault_of_the_program_is_not_a_skip():
    with pytest.raises(TypeError):
        list(Pipeline([Source([None], "a")], encode, Settings(BUDGET, 1, epochs=1)))


def test_a_skip_log_refuses_a_share_that_is_none():
    with pytest.raises(DataError, match="max_skip_share 5: expected a share"):
        SkipLog(None, 5)


# --- to the device ------------------------------------------------------------------------------------------------


def test_synthetic_batches_have_the_shapes_of_real_ones():
    budget = Budget(128, 4, 3)
    batch = next(synthetic_batches(budget, range(2)))
    real = collate([[encode(("a", 1))]] * 2, budget)
    for key, value in real.items():
        same = key if key != "patches" else "window_segment"        # text has no patches to compare the width of
        assert batch.arrays[key].shape[:3] == real[same].shape[: batch.arrays[key].ndim][:3]
        assert batch.arrays[key].dtype == value.dtype
    slots = batch.arrays["vision_slot"]
    assert (batch.arrays["window_segment"].reshape(2, -1, 4)[0][slots[0][slots[0] >= 0]] > 0).all()
    assert (batch.arrays["segment"] > 0).mean() > 0.7
    with pytest.raises(DataError, match="too small for a synthetic example"):
        next(synthetic_batches(Budget(8, 1), [0]))


def test_arrays_reach_the_device_unchanged():
    import jax

    from lvr_jax.data.device import Placement, batch_sharding, to_device

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    sharding = batch_sharding(mesh)
    batch = next(iter(pipeline()))
    for placement in (None, Placement.of(sharding, 2)):
        for key, value in to_device(batch.arrays, sharding, placement).items():
            np.testing.assert_array_equal(value, batch.arrays[key])
            assert value.sharding == sharding


def test_reading_data_starts_no_jax_backend():
    """Grain itself imports the jax module; what must never happen in a worker is that it takes the accelerator."""
    program = (
        "import sys, importlib\n"
        "for name in 'chat images boxes records packing filling encoding skips progress digit_scenes'.split():\n"
        "    importlib.import_module('lvr_jax.data.' + name)\n"
        "assert 'jax' not in sys.modules, 'jax imported'\n"
        "import lvr_jax.data.pipeline, lvr_jax.data.synthetic\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'backend started'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
