"""The program that libtpu makes of a step is the one that was meant, and the tool says what fits.

Needs libtpu, no TPU: `pip install -e '.[tpu]'`, then `pytest -m tpu`.
"""

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from aot import bill, check, collectives, hlo, programs, report
from aot.slices import ENVIRONMENT, Slice
from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.models import compiler_options
from lvr_jax.models.qwen2_5_vl import config as networks
from lvr_jax.training.experiment import Experiment, sharding_rules
from lvr_jax.training.partitioning import make_mesh

pytestmark = [pytest.mark.tpu, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
GIB = 2**30
# Of no weight's size, so that an activation is known by it: tokens, windows and patches of a row.
T, W = 1920, 136
P = 64 * W
QUICK = -1.0


@pytest.fixture(scope="module", autouse=True)
def libtpu():
    """Set before libtpu is loaded."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)


def config_of(variant: str = "lvr", size: str = "3b"):
    c = importlib.import_module(f"configs.{variant}").get_config(size)
    c.init.checkpoint, c.data.tokenizer = "", "none"
    return c


@pytest.mark.parametrize("topology, bound, mfu", [("v5e:4x4", 15.0, 0.44), ("v6e:4x4", 30.0, 0.08)])
def test_the_3b_step_of_the_baseline_fits(topology, bound, mfu):
    """All layers, 64 rows of 16,384 tokens, at the effort and with the options with which a run compiles. The bound on
    MFU is the compiler's plan: with rings of partial products it was 0.17 on v5e and 0.08 on v6e."""
    where = Slice.parse(topology)
    c = config_of()
    c.accumulate = 4
    mesh = make_mesh(c.mesh, where.devices)
    program = programs.train(Experiment.shapes(c, mesh))
    found = report.compiled(program, mesh)
    assert found.fits and found.total <= bound * GIB < where.memory
    assert report.speed(program, found, where)["mfu"] > mfu


def short_step(topology: str, **mesh) -> tuple[Experiment, report.Compiled]:
    """The 3B network's widths and vocabulary with two layers of each tower, one of them with full attention."""
    whole = networks.SIZES["3b"]
    two = dataclasses.replace(
        whole, text=dataclasses.replace(whole.text, layers=2),
        vision=dataclasses.replace(whole.vision, depth=2, full_attention_layers=(1,)),
    )  # fmt: skip
    c = config_of()
    c.data.tokens, c.data.windows, c.data.max_per_row = T, W, 1
    c.mesh.update(mesh)
    devices = make_mesh(c.mesh, Slice.parse(topology).devices)
    c.rows = devices.shape["data"] * devices.shape["fsdp"]
    with mock.patch.dict(networks.SIZES, {"3b": two}):
        experiment = Experiment.shapes(c, devices)
    found = report.compiled(programs.train(experiment), devices, QUICK)
    assert found.fits
    return experiment, found


@pytest.fixture(scope="module")
def short(libtpu):
    return short_step("v5e:2x2")


def test_the_3b_step_moves_weights_and_not_activations(short):
    experiment, found = short
    moved = collectives.collectives(found.text)
    floats = [(c.kind, a) for c in moved for a in c.arrays if a.dtype in ("bf16", "f32")]
    # Rows cross chips where the embedding, whose D is cut, is looked up, and in the gradient of that: each chip gives
    # and takes as much as one row holds. Nothing else as long as a row moves, and no row is gathered.
    long = {(kind, a.shape) for kind, a in floats if {T, W, P} & set(a.shape)}
    assert {kind for kind, _ in long} <= {"all-to-all"}
    assert all(math.prod(shape) == T * 2048 for _, shape in long)
    gathered = {a.shape for kind, a in floats if kind == "all-gather"}
    assert (151936, 2048) in gathered, "the unembedding is gathered once for all chunks of the loss"
    assert sum(c.times for c in moved for a in c.arrays if (151936, 2048) == a.shape and c.kind == "all-gather") == 1
    # The frozen tower is cut like the rest: what a chip holds of it is a quarter.
    rules = sharding_rules(experiment.config, experiment.network)
    tower = programs.shardings(experiment.like.frozen, rules, experiment.mesh)
    for where in (tower["vision"]["blocks"]["qkv"], tower["vision"]["merger"]["out"]):
        assert "fsdp" in where.spec


def test_the_3b_step_holds_no_logits_of_a_row_and_no_scores_of_a_sequence(short):
    experiment, found = short
    V, most = experiment.network.text.vocab, experiment.recipe.objective.chunk
    chunk = -(-T // -(-T // most))          # a row in equal parts, none larger than the config's
    arrays = hlo.arrays(found.text)
    weights = {2048, 512}
    logits = {a.shape for a in arrays if V in a.shape and a.dtype == "f32" and not weights & set(a.shape)}
    assert logits and max(hlo.Array("f32", shape).bytes for shape in logits) == 4 * chunk * V
    scores = {a.shape for a in arrays if sum(n in (T, P) for n in a.shape) > 1}
    assert not scores, "attention is splash: scores exist in its blocks only"
    windows = {a.shape for a in arrays if a.shape[-2:] == (64, 64) and W in a.shape}
    assert windows, "window layers are one dense batch of 64 x 64 scores"


def test_splash_attention_is_in_the_program_at_both_head_widths(short):
    _, found = short
    kernels = [line for line in found.text.splitlines() if "tpu_custom_call" in line]
    shapes = [a.shape for line in kernels for a in hlo.arrays(line)]
    assert any(shape[-2:] == (T, 128) for shape in shapes), "decoder, 128 wide"
    assert any(shape[-2:] == (P, 80) for shape in shapes), "tower, 80 wide"
    ids = [shape for line in kernels for a in hlo.arrays(line) if a.dtype == "s32" for shape in [a.shape]]
    assert any(T in shape for shape in ids) and any(P in shape for shape in ids), "with segment ids"


def test_between_slices_only_sums_of_gradients_travel():
    """Two slices that a data-centre network joins: weights are gathered within each, and rows stay in theirs."""
    experiment, found = short_step("v5e:2x2*2", data=2)
    assert [{device.slice_index for device in part.flat} for part in experiment.mesh.devices] == [{0}, {1}]
    between = [c for c in collectives.collectives(found.text) if c.between_slices]
    assert {c.kind for c in between} == {"all-reduce"}
    # A chip sends its quarter of every gradient; that of the table twice, as it reads tokens and as it scores them.
    held = {path: x.size // 4 for path, x in flat(experiment.like.trained).items()}
    table = held["text/embed"]
    assert max(a.bytes for c in between for a in c.arrays) == 4 * table
    assert 2 * sum(held.values()) < sum(c.bytes for c in between) < 4 * (sum(held.values()) + table)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/compile_check.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


TINY = ("--config", "configs/lvr.py:tiny", "--effort=-1", "--config.compute.attention=xla")


def test_every_program_of_a_small_network_is_a_row(tmp_path):
    rows = tmp_path / "rows.json"
    done = run(*TINY, "--topology", "v5e:2x2", "--what", ",".join(check.PROGRAMS), "--items=4", "--prompt=256",
               "--conditions=4", "--new_tokens=8", "--json", str(rows))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(rows.read_text())
    assert [r["program"] for r in found] == list(check.PROGRAMS) and all(r["fits"] for r in found)
    for r in found:
        cycles = sum(part[name] for part in r["speed"]["bill"].values() for name in bill.PASSES)
        seconds = r["speed"]["seconds"]
        of_parts = seconds["plan"] - seconds["kernels"] - seconds["exposed"]
        assert 0 < cycles == pytest.approx(of_parts * 1.5e9, rel=1e-3)
        assert r["options"] == compiler_options.of_kind("TPU v5 lite")
    assert found[0]["slice"] == "v5e-4" and found[0]["model_flops"] > 0 and found[0]["collectives"]
    assert set(found[0]["versions"]) == {"jax", "libtpu"}
    again = run("--show", str(rows))
    table, *bills = done.stdout.removesuffix("\n").split("\n\n")
    assert table.count("\n") + 1 == 2 + len(found) == 2 + len(bills)
    assert all(text in again.stdout for text in bills)
    # The command of a row makes that row.
    once_more = subprocess.run(found[0]["command"].split(), cwd=ROOT, capture_output=True, text=True)
    one, other = ([cell.strip() for cell in x.stdout.splitlines()[2].split("|")[:12]] for x in (once_more, done))
    assert one == other     # columns are as wide as the table's widest row


def test_what_does_not_fit_has_status_one():
    done = run(*TINY, "--topology", "v5e:2x2", f"--config.rows={2**19}")
    assert done.returncode == 1, done.stderr
    assert "| no " in done.stdout


@pytest.mark.parametrize("held, message", [
    ("{", "not JSON"), ('{"a": 1}', "expected a list"), ("[1]", "expected a list"), ("{}", "expected a list"),
    ('[{"command": "x"}]', "expected a list of records"),
])  # fmt: skip
@pytest.mark.parametrize("flag", ["--show", "--json"])
def test_a_file_that_holds_no_records_is_refused_before_anything_is_compiled(tmp_path, flag, held, message):
    path = tmp_path / "rows.json"
    path.write_text(held)
    done = run(*TINY, "--topology", "v5e:2x2", flag, str(path))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert path.read_text() == held


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--topology", "v99:4x4"), "topology 'v99:4x4': "),
        (("--topology", "v5e-16"), "expected GENERATION:AxB[xC]"),
        (("--topology", "v5e:2x2", "--what", "decode"), "--what 'decode', expected some of train, sweep, prefill"),
        (("--topology", "v5e:2x2", "--config.rows=6"), "rows = 6: expected a multiple"),
        (("--topology", "v5e:2x2*2"), "expected data to be a multiple of the 2 slices"),
        ((), "expected --config FILE[:SIZE] and --topology NAME"),
    ],
)
def test_bad_input_is_one_line_with_status_two(arguments, message):
    done = run(*TINY, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("compile_check: ")
