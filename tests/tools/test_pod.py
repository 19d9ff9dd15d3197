"""evaluate and prism on the hosts of a pod make what one host makes: real processes, joined on one machine."""

import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "multihost"))

from processes import ROOT, finish, last_line, start  # noqa: E402

from lvr_jax.evaluation.results import read_results  # noqa: E402
from lvr_jax.latents import sweep_files  # noqa: E402

NAME = "tiny_tied_trained_lvr"
QUESTIONS = ("--benchmark", "digit_search", "--benchmark.size=8", "--benchmark.split=test", "--budget=2", "--batch=1",
             "--protocol.max_new_tokens=8")  # fmt: skip
SMALL = (
    "--config.benchmark=digit_search", "--config.options=size=8, options=2", "--config.budget=2", "--config.rows=2",
    "--config.switches=max_new_tokens=6", "--config.force_latents=True", "--config.draws=100", "--config.gallery=1",
    "--config.conditions.names=zero,donor,slot_embedding,oracle", "--config.conditions.sigmas=0.1",
    "--config.conditions.alphas=()", "--config.conditions.per_latent=", "--config.attention=clean",
    "--config.probes.controls=2", "--config.probes.ladder=()", "--config.alignment.count=4",
    "--config.sensitivity.count=4", "--noprogress",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint that thinks in latents, and what was compiled, for all runs."""
    place = tmp_path_factory.mktemp("pod")
    shutil.copytree(ROOT / "tests/golden/checkpoints" / NAME, place / NAME)
    shutil.copy(ROOT / "tests/golden/tokenizer.json", place / NAME)
    (place / NAME / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 12544}')
    return place


def begin(place: Path, count: int, command: list, **options) -> list:
    return start(command, count, **options)


def evaluation(place: Path, output: Path, count: int, *more, **options) -> list:
    command = [ROOT / "tools/evaluate.py", "--checkpoint", place / NAME, *QUESTIONS, "--output", output, *more]
    return begin(place, count, command, **options)


def audit_command(place: Path, workdir: Path) -> list:
    return [ROOT / "tools/prism.py", "--config", ROOT / "configs/prism.py", "--workdir", workdir, *SMALL,
            f"--config.checkpoint={place / NAME}"]  # fmt: skip


def audit(place: Path, workdir: Path, count: int, *more, **options) -> list:
    return begin(place, count, [*audit_command(place, workdir), *more], **options)


def done(processes: list) -> list[tuple[int, str, str]]:
    found = finish(processes, timeout=900)
    assert [status for status, _, _ in found] == [0] * len(found), found
    return found


def killed(processes: list, there) -> None:
    """One host dies when `there()`; the pod takes the others away."""
    deadline = time.monotonic() + 600
    while not there() and time.monotonic() < deadline and processes[-1].poll() is None:
        time.sleep(0.02)
    processes[-1].send_signal(signal.SIGKILL)
    time.sleep(0.5)
    finish(processes, timeout=0.1) if all(p.poll() is not None for p in processes) else [p.kill() for p in processes]
    for process in processes:
        process.communicate()


def one_line_each(processes: list, status: int, said: str, program: str) -> None:
    found = finish(processes, timeout=300)
    assert [ended for ended, _, _ in found] == [status] * len(found), found
    for _, _, error in found:
        line = last_line(error)
        assert line.startswith(f"{program}: ") and said in line and "Traceback" not in error, error


# Evaluation ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(place):
    (_, out, _), = done(evaluation(place, place / "one.jsonl", 1))
    assert "n = 8" in out
    return place / "one.jsonl"


@pytest.mark.slow
def test_an_evaluation_on_two_hosts_is_that_of_one(place, whole):
    first, second = done(evaluation(place, place / "two.jsonl", 2))
    assert "n = 8" in first[1] and not second[1], "the first one reports"
    assert (place / "two.jsonl").read_bytes() == whole.read_bytes()
    assert not (place / "two.jsonl.parts").exists()


@pytest.mark.slow
def test_an_evaluation_whose_host_died_goes_on_with_another_number_of_them(place, whole):
    output, parts = place / "killed.jsonl", place / "killed.jsonl.parts"
    killed(evaluation(place, output, 2), lambda: len(list(parts.glob("*.jsonl"))) > 1)
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")}
    assert kept and not output.exists()
    done(evaluation(place, output, 3))
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_weights_over_two_hosts_give_the_items_of_one(place, whole):
    done(evaluation(place, place / "cell.jsonl", 2, "--mesh", "data=1,tensor=2"))
    ours, theirs = read_results(place / "cell.jsonl"), read_results(whole)
    assert ours.header == theirs.header, "weights have one fingerprint however they are cut"
    told = lambda results: [(i.id, i.reply, i.correct, i.latents_fed) for i in results.items]  # noqa: E731
    assert told(ours) == told(theirs) and any(i.latents_fed for i in ours.items)
    for a, b in zip(ours.items, theirs.items):
        np.testing.assert_allclose(a.letter_logits, b.letter_logits, atol=2e-4)      # fp32 sums in two parts


@pytest.mark.slow
def test_hosts_that_were_asked_different_things_all_say_so(place):
    run = evaluation(place, place / "no.jsonl", 2, each=[(), ("--limit", "3")])
    one_line_each(run, 2, "the hosts disagree on options.limit", "evaluate")
    assert not (place / "no.jsonl").exists()


@pytest.mark.slow
def test_hosts_with_other_weights_all_say_so(place, tmp_path):
    """The same path on each host's own disk: a link that leads to another checkpoint for the second one."""
    shutil.copytree(place / NAME, tmp_path / "1" / NAME)
    with open(tmp_path / "1" / NAME / "model.safetensors", "r+b") as file:
        file.seek(-6, 2)
        file.write(b"\x01\x3f")
    (tmp_path / "0").mkdir()
    shutil.copytree(place / NAME, tmp_path / "0" / NAME)
    command = ["-c", "import os, runpy, sys; os.chdir(sys.argv.pop()); sys.argv[0] = sys.argv[1]; del sys.argv[1];"
               f"runpy.run_path({str(ROOT / 'tools/evaluate.py')!r}, run_name='__main__')", "evaluate", "--checkpoint",
               NAME, *QUESTIONS, "--output", place / "other.jsonl"]  # fmt: skip
    run = begin(place, 2, command, each=[(tmp_path / "0",), (tmp_path / "1",)])
    one_line_each(run, 2, "the hosts disagree on details.weights", "evaluate")


# Audit ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def audited(place):
    done(audit(place, place / "one", 1))
    return place / "one"


def arrays(workdir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in sorted(workdir.rglob("*.npz"))}


@pytest.mark.slow
def test_an_audit_on_two_hosts_is_that_of_one(place, audited):
    first, second = done(audit(place, place / "two", 2))
    assert first[1].strip() == str(place / "two/report/report.html") and not second[1]
    report = "report/report.json"
    assert (place / "two" / report).read_bytes() == (audited / report).read_bytes()
    assert arrays(place / "two") == arrays(audited)


@pytest.mark.slow
def test_an_audit_whose_host_died_goes_on_with_another_number_of_them(place, audited):
    workdir = place / "killed"
    killed(audit(place, workdir, 2), lambda: len(list((workdir / NAME / "sweep").glob("first*.npz"))) > 1)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.npz")}
    one_line_each(audit(place, workdir, 1, "--report_only"), 2, "is missing", "prism")
    done(audit(place, workdir, 3))
    assert arrays(workdir) == arrays(audited)
    assert (workdir / "report/report.json").read_bytes() == (audited / "report/report.json").read_bytes()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "nothing was done twice"


SWEEP_ALONE = ("--config.attention=", "--config.patching.count=1", "--config.alignment.count=0",
               "--config.sensitivity.count=0", "--config.report=False")  # fmt: skip
# The program with a type that no audit needs but that of tests.
IN_FP64 = """
import runpy, sys
import jax
from lvr_jax.prism import experiment
jax.config.update("jax_enable_x64", True)
experiment.DTYPES["float64"] = jax.numpy.float64
sys.argv = sys.argv[1:] + ["--config.dtype=float64"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_weights_over_two_hosts_give_the_audit_of_one(place, audited):
    """The same tokens. Margins add heads and inner widths up in two parts, and so are compared with those of fp64: of
    two correct fp32 audits the one is as far from it as from the other."""
    done(audit(place, place / "cell", 2, "--config.mesh.data=1", "--config.mesh.tensor=2"))
    program, *arguments = audit_command(place, place / "exact")
    done(begin(place, 1, ["-c", IN_FP64, program, *arguments, *SWEEP_ALONE]))
    ours, theirs, exact = (sweep_files.read(workdir / NAME / "sweep") for workdir in
                           (place / "cell", audited, place / "exact"))  # fmt: skip
    assert ours.conditions == theirs.conditions == exact.conditions and ours.items == theirs.items == exact.items
    for each in (theirs, exact):
        np.testing.assert_array_equal(ours.arrays["token"], each.arrays["token"])
    margin = np.abs(ours.arrays["margin@answer"] - exact.arrays["margin@answer"])
    assert np.nanmax(margin) <= 2e-4 and np.nanmedian(margin) <= 2e-5


@pytest.mark.slow
def test_a_later_process_of_another_type_writes_the_report(place, audited):
    before = arrays(audited)
    shutil.rmtree(audited / "report")
    page = (audited / NAME / "audit.json").read_bytes()
    done(audit(place, audited, 1, "--report_only", "--config.dtype=bfloat16"))
    assert (audited / "report/report.html").exists() and arrays(audited) == before
    assert (audited / NAME / "audit.json").read_bytes() == page
