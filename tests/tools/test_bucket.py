"""The four programs work on gs:// paths alone, against a local object store."""

import json
import os
import sys
from pathlib import Path

import pytest
from forked import Process

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
import runs  # noqa: E402
from object_store import Refused, Store  # noqa: E402
from warm import Warm  # noqa: E402

TRAIN = (
    "train.py", "--config", "configs/lvr.py:tiny", "--config.steps=4", "--config.rows=4", "--config.data.tokens=256",
    "--config.data.max_per_row=2", "--config.data.prefetch=0", "--config.data.lookahead=4",
    "--config.held_out.every=0", "--config.checkpoint.every=2", "--config.log.every=1",
    "--config.log.progress=False",
)  # fmt: skip
PRISM = (
    "--config", "configs/prism.py", "--config.benchmark=digit_search",
    "--config.options=size=8, options=2", "--config.budget=2", "--config.rows=8",
    "--config.switches=max_new_tokens=12", "--config.force_latents=True", "--config.draws=100",
    "--config.gallery=1", "--config.conditions.names=zero", "--config.conditions.sigmas=()",
    "--config.conditions.crossed=", "--config.conditions.contexts=", "--config.patching.count=0",
    "--config.conditions.alphas=()", "--config.conditions.per_latent=", "--config.attention=",
    "--config.probes.controls=2", "--config.probes.ladder=()", "--config.alignment.count=4",
    "--config.sensitivity.count=0", "--noprogress",
)  # fmt: skip


def tool(store: Store, *command: str, **more: str) -> tuple[int, str, str]:
    environment = runs.environment(**store.environment, **more)
    process = Process([ROOT / "tools" / command[0], *command[1:]], environment, ROOT)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def store():
    with Store() as store:
        yield store


@pytest.fixture(scope="module")
def train(two_layers_checkpoint):
    return *TRAIN, f"--config.init.checkpoint={two_layers_checkpoint}"


@pytest.fixture(scope="module")
def trained(store, train):
    # Without a folder of its own for compiled programs JAX keeps them in the bucket, if they took that long.
    status, out, err = tool(store, *train, "--workdir", "gs://bucket/run", JAX_COMPILATION_CACHE_DIR="",
                            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3")  # fmt: skip
    assert status == 0 and "finished at step 4 of 4" in out, err
    return dict(store.objects)


@pytest.mark.slow
def test_a_run_in_a_bucket_leaves_everything_there(store, trained):
    assert [json.loads(line)["step"] for line in store.read("run/metrics.jsonl").splitlines()] == [1, 2, 3, 4]
    assert json.loads(store.read("run/config.json"))["steps"] == 4
    for part in ("checkpoints/2/", "checkpoints/4/", "export/lvr_jax.json", "tensorboard/events", "compilation/"):
        assert store.names(f"run/{part}"), part


@pytest.mark.slow
def test_it_goes_on_there_and_finishes_an_export_that_was_killed(store, train, trained):
    """As after a kill between checkpoint and export's marker: the last checkpoint is gone, the export is half there."""
    for name in store.names("run/checkpoints/4/") + ["run/export/lvr_jax.json"] + store.names("run/export/hf/")[:1]:
        store.delete(name)
    status, out, err = tool(store, *train, "--workdir", "gs://bucket/run")
    assert status == 0 and "finished at step 4 of 4" in out, err
    assert "run/export/lvr_jax.json" in store.objects
    losses = [[json.loads(line)["loss_total"] for line in held["run/metrics.jsonl"][0].splitlines()]
              for held in (trained, store.objects)]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.slow
def test_its_export_converts_and_is_evaluated_and_audited(store, trained, tmp_path):
    store.objects = dict(trained)
    with Warm(tmp_path, runs.environment(**store.environment)) as run:
        status, said = run("convert", "to-hf", "gs://bucket/run/export", tmp_path / "hf", "--verify")
        assert status == 0, said
        status, said = run("convert", "to-flax", tmp_path / "hf", "gs://bucket/flax", "--verify")
        assert status == 0 and "flax/lvr_jax.json" in store.objects, said
        status, said = run("convert", "to-hf", "gs://bucket/flax", "gs://bucket/hf")
        assert status == 0, said
        for path in (tmp_path / "hf").iterdir():
            assert store.read(f"hf/{path.name}") == path.read_bytes(), path.name
        status, said = run(
            "evaluate", "--checkpoint", "gs://bucket/flax", "--benchmark", "digit_search", "--benchmark.size=4",
            "--workdir", "gs://bucket/evaluated", "--budget", "2",
        )  # fmt: skip
        assert status == 0 and len(store.read("evaluated/digit_search-clean.jsonl").splitlines()) == 5, said
        assert not os.path.exists(ROOT / "gs:")
        status, said = run("prism", *PRISM, "--config.checkpoint=gs://bucket/flax", "--workdir", "gs://bucket/prism")
        assert status == 0 and "prism/report/report.html" in store.objects, said


@pytest.mark.slow
def test_no_access_is_one_line_and_no_hang(store, tmp_path):
    status, _, err = tool(store, *TRAIN, "--workdir", "gs://somebody_elses/run")
    assert status == 2 and "Traceback" not in err, err
    assert "gs://somebody_elses/run: the workdir cannot be read" in err.splitlines()[-1]

    def refuse(name):
        if "checkpoints/" in name:
            raise Refused(403, "no access")

    store.on_write = refuse
    status, _, err = tool(store, *TRAIN, "--workdir", "gs://bucket/read_only")
    store.on_write = lambda name: None
    assert status == 1 and err.splitlines()[-1].startswith("train: ") and "could not be written" in err, err
