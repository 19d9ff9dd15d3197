"""The study does every job once, in order, and what was changed again; it survives being killed."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Process
from ml_collections import ConfigDict

from lvr_jax.prism import experiment as prism
from study import jobs as study
from study.jobs import Job
from study.workers import BELIEVED, Forecast, JobFailed, Workers

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def config(**changes) -> ConfigDict:
    from configs import reproduce

    c = reproduce.get_config()
    for name, value in changes.items():
        c[name] = value
    return c


# Which jobs --------------------------------------------------------------------------------------------------------


def test_every_variant_starts_from_the_same_base_and_sees_the_same_data(tmp_path):
    jobs = {job.name: job for job in study.jobs(config(), tmp_path)}
    trained = [job for name, job in jobs.items() if job.stage == "train" and "believed" not in name]
    assert {"train lvr", "train n_lvr", "train d_lvr", "train p_lvr_2", "train p_lvr_3 steps=600",
            "train sft"} <= set(jobs)  # fmt: skip
    for flag in ("init.checkpoint", "seed", "rows", "branches.count", "data.sources.digits.questions"):
        value = lambda job: [a for a in job.command if a.startswith(f"--config.{flag}=")]  # noqa: E731, B023
        assert len({*map(str, (value(job) for job in trained if "masked" not in job.name))}) == 1, flag
    # 32 questions a step: of 8 pictures, or with a picture each where what is black depends on the question.
    assert "--config.rows=8" in jobs["train lvr"].command and "--config.rows=16" in jobs["train masked: lvr"].command
    assert not any("--config.branches" in a for a in jobs["train masked: lvr"].command)
    assert jobs["train d_lvr"].after == ("convert tiny", "train lvr"), "it forks the baseline"
    assert jobs["audit masked: lvr"].after == ("train masked: lvr",)
    assert any("mask_box=True" in a for a in jobs["evaluate masked: lvr"].command)
    assert "audit base" not in jobs and "audit sft" not in jobs, "without latents there is nothing to audit"


def test_seeds_are_runs_of_their_own(tmp_path):
    one, three = study.jobs(config(), tmp_path), study.jobs(config(seeds=(0, 1, 2)), tmp_path)
    assert len(three) - 2 == 3 * (len(one) - 2)         # each base is converted once
    assert {job.name: job.key for job in one}.items() <= {job.name: job.key for job in three}.items()
    forks = {job.name: job.after[1] for job in three if job.name.startswith("train d_lvr")}
    assert forks["train d_lvr seed 2"] == "train lvr seed 2"
    # A name is one entry of the audit's list, which has commas between names.
    c = config(seeds=(0, 1, 2))
    for run in study.runs(c, tmp_path):
        assert prism.labels_of(("folder",), prism.names(study.prism_settings(c, run)["names"])) == (run.name,)


def test_a_change_concerns_what_depends_on_it_and_nothing_else(tmp_path):
    keys = lambda **changes: {job.name: job.key for job in study.jobs(config(**changes), tmp_path)}  # noqa: E731
    before, audited = keys(), keys(audited=100)
    assert {name for name in before if before[name] != audited[name]} == {n for n in before if n.startswith("audit ")}
    c = config()
    c.train.steps = 100
    trained = {job.name: job.key for job in study.jobs(c, tmp_path)}
    own = {f"{stage} {run}" for stage in ("train", "evaluate", "audit") for run in ("p_lvr_3 steps=600",
           "bottleneck: lvr steps=600")}  # fmt: skip
    assert {name for name in before if before[name] == trained[name]} == {
        "convert tiny", "convert tiny_one_offset", "train base", "evaluate base", *own
    }, "the base takes no step, and these runs say their own"  # fmt: skip


def test_keys_do_not_depend_on_where_the_work_is_done(tmp_path):
    here, there = ([job.key for job in study.jobs(config(), tmp_path / name)] for name in ("here", "there"))
    assert here == there


def test_axes_are_runs_of_their_own_with_names_fields_and_folders_of_their_own(tmp_path):
    c = config(runs=ConfigDict({
        "plain": "lvr, lvr lambda=0|0.01 target=own|shuffled seed=0|1, lvr base=tiny_one_offset steps=600,"
                 " n_lvr noise=1",
        "bottleneck": "lvr, n_lvr, lvr lambda=0", "masked": "lvr",
    }))  # fmt: skip
    found = study.runs(c, tmp_path)
    names = [run.name for run in found]
    assert len(found) == 15 and len({run.folder for run in found}) == 15 and len(set(names)) == 15
    assert {"lvr lambda=0.01 target=shuffled seed 1", "bottleneck: n_lvr", "bottleneck: lvr lambda=0"} <= set(names)
    assert not any("," in name for name in names), "the audit's list has commas between names"
    jobs = {job.name: job for job in study.jobs(c, tmp_path)}
    flags = lambda name: set(jobs[f"train {name}"].command)  # noqa: E731
    assert {"--config.reconstruction.points=((0.0, 0.01),)", "--config.objective.target=shuffled"} <= flags(
        "lvr lambda=0.01 target=shuffled"
    )
    believed = "lvr base=tiny_one_offset steps=600"
    assert jobs[f"train {believed}"].after == ("convert tiny_one_offset",)
    assert "--config.steps=600" in flags(believed) and "--config.checkpoint.every=120" in flags(believed)
    assert "--config.objective.noise=1.0" in flags("n_lvr noise=1")
    assert "--config.objective.attention=bottleneck" in flags("bottleneck: n_lvr")
    longer = {job.name: job for job in study.jobs(config(runs=ConfigDict({"believed": "lvr"})), tmp_path)}
    command = longer["train believed: lvr"].command
    assert f"--config.steps={2 * config().train.steps}" in command and longer["convert tiny_one_offset"]


def test_settings_named_light_have_light_audits_with_all_that_settings_are_compared_by(tmp_path):
    from configs import prism as settings
    from lvr_jax.prism.report.setting_comparison import INTERVENTIONS
    from study.summary import SHOWN

    jobs = {job.name: job for job in study.jobs(config(), tmp_path)}
    light = {name.removeprefix("audit ") for name, job in jobs.items() if "configs/prism.py:light" in job.command}
    full = {name.removeprefix("audit ") for name, job in jobs.items() if "configs/prism.py" in job.command}
    assert full == {"lvr", "n_lvr", "d_lvr", "p_lvr_2", "p_lvr_3 steps=600"}
    assert light == {run.name for run in study.runs(config(), tmp_path) if run.setting != "plain"}
    (names,) = (a for a in jobs["audit masked: lvr"].command if a.startswith("--config.conditions.names="))
    run_in_full = set(settings.get_config().conditions.names.split(","))
    assert {*INTERVENTIONS, *SHOWN} <= set(names.partition("=")[2].split(",")) <= run_in_full
    with pytest.raises(ValueError, match="light has 'dark', expected some of plain, "):
        study.jobs(config(light="dark"), tmp_path)


@pytest.mark.parametrize("setting, name", [("bottleneck", "bottleneck"), ("masked", "masked_input")])
def test_a_setting_is_the_config_that_has_its_name(tmp_path, setting, name):
    """What `runs.SETTING = "lvr"` trains is what configs/NAME.py trains."""
    import importlib

    (run,) = study.runs(config(runs=ConfigDict({setting: "lvr"})), tmp_path)
    ours, theirs = (importlib.import_module(f"configs.{each}").get_config("tiny") for each in ("lvr", name))
    ours.update_from_flattened_dict(run.fields())
    ours.name = theirs.name
    assert ours.to_json(sort_keys=True) == theirs.to_json(sort_keys=True)


@pytest.mark.parametrize("changes, said", [
    ({"runs": ConfigDict({"plain": "lvr,elvis"})}, "no configs/elvis.py"),
    ({"runs": ConfigDict({"dark": "lvr"})}, "runs.dark"),
    ({"runs": ConfigDict({"plain": "d_lvr"})}, "lvr first"),
    ({"runs": ConfigDict({"plain": "lvr, lvr"})}, "'lvr' with seed 0 is asked for twice"),
    ({"runs": ConfigDict({"plain": "lvr lambda=.1, d_lvr"})}, "'d_lvr' before 'lvr'"),
    ({"runs": ConfigDict({"plain": "lvr warmth=3"})}, "lvr.py has no field 'warmth', expected .*lambda, .*target"),
    ({"runs": ConfigDict({"plain": "lvr optimizer.speed=3"})}, "no field 'optimizer.speed'"),
    ({"runs": ConfigDict({"plain": "lvr lambda=high"})}, "lvr lambda=high: lambda is 'high', expected a number"),
    ({"runs": ConfigDict({"plain": "lvr lambda"})}, "has 'lambda', expected AXIS=VALUE"),
    ({"runs": ConfigDict({"plain": "lvr, d_lvr lambda=1"})}, "schedules lambda"),
    ({"runs": ConfigDict({"plain": "lvr base=huge"})}, "has base 'huge': there is no"),
    ({"runs": ConfigDict({"plain": "lvr base=../huge"})}, "base is '../huge', which lies outside"),
    ({"runs": ConfigDict({"plain": "lvr seed=x"})}, "has seed 'x', expected a whole number"),
    ({"runs": ConfigDict({"plain": "data/digit_search"})}, "configs/data/digit_search.py trains nothing"),
    ({"runs": ConfigDict({"plain": "reproduce"})}, "configs/reproduce.py trains nothing, expected an experiment"),
    ({"runs": ConfigDict({"plain": "prism"})}, "configs/prism.py trains nothing"),
    ({"runs": ConfigDict({"plain": "lvr seed=²"})}, "has seed '²', expected a whole number"),
    ({"seeds": (1, 0, 1)}, "'base' with seed 1 is asked for twice"),
    ({"seeds": ()}, "nothing to train"),
])
def test_runs_that_cannot_be_are_refused_by_name(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        study.jobs(config(**changes), tmp_path)


# Doing them --------------------------------------------------------------------------------------------------------


def job(tmp_path: Path, name: str, code: str, *after: str, key: str = "1", seconds: float = 1) -> Job:
    """A job that appends a line to a log and runs a program of few lines; `made` is its path."""
    made, program = tmp_path / f"{name}.out", tmp_path / f"{name}.py"
    program.write_text(f"made = {str(made)!r}\nopen({str(tmp_path / 'order')!r}, 'a').write('{name}\\n')\n{code}\n")
    return Job(name, "train", (str(program), name), after, made, seconds, key)


WRITE = "open(made, 'w').write('x')"


def order(tmp_path: Path) -> list[str]:
    return (tmp_path / "order").read_text().split()


def test_jobs_run_after_those_that_they_need_and_once(tmp_path):
    jobs = [job(tmp_path, "c", WRITE, "a", "b"), job(tmp_path, "a", WRITE), job(tmp_path, "b", WRITE, "a")]
    Workers(tmp_path, 2).run(jobs, progress=False)
    Workers(tmp_path, 2).run(jobs, progress=False)
    assert order(tmp_path) == ["a", "b", "c"]


def test_what_one_core_compiles_another_does_not_compile_beside_it(tmp_path):
    """Of two jobs with the same programs the second waits for the first, as long as there is something else to do."""
    c_began = f"import time\nwhile 'c' not in open({str(tmp_path / 'order')!r}).read(): time.sleep(0.02)\n"
    a_is_done = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'a.out')!r}): time.sleep(0.02)\n"
    jobs = [
        dataclasses.replace(job(tmp_path, "a", c_began + WRITE, seconds=9), programs="audit"),
        dataclasses.replace(job(tmp_path, "b", f"assert open({str(tmp_path / 'a.out')!r}).read(); {WRITE}", seconds=8),
                            programs="audit"),
        job(tmp_path, "c", a_is_done + WRITE),
    ]  # fmt: skip
    Workers(tmp_path, 2).run(jobs, progress=False)
    assert sorted(order(tmp_path)) == ["a", "b", "c"] and order(tmp_path)[-1] == "b"


def test_another_key_is_done_again_from_nothing(tmp_path):
    append = "open(made, 'a').write('x')"
    for key in ("1", "2"):
        Workers(tmp_path, 1).run([job(tmp_path, "a", append, key=key)], progress=False)
    assert (tmp_path / "a.out").read_text() == "x"


def test_what_was_begun_under_the_same_key_goes_on(tmp_path):
    append = "open(made, 'a').write('x'); import os; os._exit(0 if len(open(made).read()) > 1 else 3)"
    jobs = [job(tmp_path, "a", append)]
    with pytest.raises(JobFailed):
        Workers(tmp_path, 1).run(jobs, progress=False)
    Workers(tmp_path, 1).run(jobs, progress=False)
    assert (tmp_path / "a.out").read_text() == "xx"


def test_a_result_that_was_removed_is_made_again(tmp_path):
    jobs = [job(tmp_path, "a", WRITE)]
    Workers(tmp_path, 1).run(jobs, progress=False)
    (tmp_path / "a.out").unlink()
    Workers(tmp_path, 1).run(jobs, progress=False)
    assert order(tmp_path) == ["a", "a"]


def test_what_others_made_is_not_removed(tmp_path):
    """Neither files that begin with a job's name, nor one that stands where a job would write."""
    for name in ("a.out_of_mine", "a.out.txt", "a"):
        (tmp_path / name).write_text("mine")
    for key in ("1", "2"):
        Workers(tmp_path, 1).run([job(tmp_path, "a", WRITE, key=key)], progress=False)
    assert all((tmp_path / name).read_text() == "mine" for name in ("a.out_of_mine", "a.out.txt", "a"))
    (tmp_path / "b.out").write_text("mine")
    with pytest.raises(JobFailed, match="b.out: exists, and no run of this study made it; move it away"):
        Workers(tmp_path, 1).run([job(tmp_path, "b", WRITE)], progress=False)
    assert (tmp_path / "b.out").read_text() == "mine"


def test_unfinished_work_of_others_is_not_removed(tmp_path):
    """Under the names of an unfinished run, where this study has begun none."""
    for name in ("a.out.parts", "a.out.incomplete"):
        (tmp_path / name).write_text("mine")
    Workers(tmp_path, 1).run([job(tmp_path, "a", WRITE)], progress=False)
    assert all((tmp_path / name).read_text() == "mine" for name in ("a.out.parts", "a.out.incomplete"))


def test_jobs_that_would_share_a_mark_are_refused(tmp_path):
    """lambda=.5 and lambda=5 differ in no letter of a file's name: each would undo what the other has finished."""
    jobs = study.jobs(config(runs=ConfigDict({"plain": "lvr lambda=.5|5"})), tmp_path)
    with pytest.raises(ValueError, match="'train lvr lambda=5' and 'train lvr lambda=.5' have one file name"):
        Workers(tmp_path, 1).run(jobs, progress=False)
    assert not list((tmp_path / "jobs").glob("*.json"))


@pytest.mark.parametrize("held", ["[]", "{", "[" * 100_000, '{"done": true}', '{"key": 1, "done": "yes"}'])
def test_a_damaged_mark_of_a_job_means_that_it_is_not_done(tmp_path, held):
    jobs = [job(tmp_path, "a", WRITE)]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.json").write_text(held)
    assert not Workers(tmp_path, 1).is_done(jobs[0])


def test_a_failure_shows_the_end_of_the_log_and_leaves_nothing_running(tmp_path):
    slow = job(tmp_path, "slow", "import os, time; open(made + '.pid', 'w').write(str(os.getpid())); time.sleep(60)")
    bad = job(tmp_path, "bad", "import time; time.sleep(1); raise SystemExit('no more tea')")
    with pytest.raises(JobFailed, match="(?s)bad ended with status 1.*no more tea"):
        Workers(tmp_path, 2).run([slow, bad], progress=False)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.out.pid").read_text()), 0)


def test_a_process_has_one_core_and_one_thread(tmp_path):
    code = "import os; open(made, 'w').write(f\"{len(os.sched_getaffinity(0))} {os.environ['OMP_NUM_THREADS']}\")"
    Workers(tmp_path, 1).run([job(tmp_path, "a", code)], progress=False)
    assert (tmp_path / "a.out").read_text() == "1 1"


@pytest.mark.parametrize("given, used", [("", "{workdir}/compiled"), ("here", "{folder}/here"),
                                         ("/tmp/there", "/tmp/there"), ("gs://bucket/there", "gs://bucket/there")])
def test_compiled_programs_are_kept_where_jax_was_told_to_or_with_the_study(tmp_path, monkeypatch, given, used):
    """A relative folder is the caller's, though programs run in another one."""
    (tmp_path / "caller").mkdir()
    monkeypatch.chdir(tmp_path / "caller")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
    code = "import os; open(made, 'w').write(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    Workers(tmp_path, 1).run([job(tmp_path, "a", code)], progress=False)
    assert (tmp_path / "a.out").read_text() == used.format(workdir=tmp_path, folder=tmp_path / "caller")


PID = "import os; open(made, 'w').write(str(os.getpid()))"


def test_jobs_of_a_core_share_a_process_until_it_has_grown(tmp_path, monkeypatch):
    jobs = [job(tmp_path, name, PID) for name in "abc"]
    monkeypatch.setattr("study.workers.MEMORY", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - 2**20)
    Workers(tmp_path, 1).run(jobs, progress=False)
    assert len({job.made.read_text() for job in jobs}) == 1, "what started it is larger, and does not count"
    monkeypatch.setattr("study.workers.MEMORY", 0)
    jobs = [job(tmp_path, name, PID) for name in "def"]
    Workers(tmp_path, 1).run(jobs, progress=False)
    assert len({job.made.read_text() for job in jobs}) == 3


def test_a_program_finds_nothing_of_the_one_before_it(tmp_path):
    """Flags by the same names (its own, and a config's fields), handlers, arguments, path, streams: all its own."""
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'rows': 1, 'steps': 2})\n"
    )
    program = """
import signal, sys
from absl import app, flags
from ml_collections import config_flags
CONFIG = config_flags.DEFINE_config_file("config", None, "", lock_config=True)
WORDS = flags.DEFINE_list("words", ["none"], "")
def main(arguments):
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    print(f"{CONFIG.value.rows} {CONFIG.value.steps} {WORDS.value} {arguments[1:]} {handler == signal.SIG_DFL}"
          f" {sys.path[0]}", file=open(made, "w"))
    print("to its own log")
    sys.path.append("left")
    assert sys.path.count("left") == 1
app.run(main)
"""
    flags = {"a": ["--config.rows=7", "--words=x,y", "rest"], "b": ["--config.steps=9"]}
    jobs = []
    for name, own in flags.items():
        plain = job(tmp_path, name, program)
        command = (plain.command[0], f"--config={config}", *own)
        jobs.append(dataclasses.replace(plain, command=command))
    Workers(tmp_path, 1).run(jobs, progress=False)
    found = {each.name: each.made.read_text().strip() for each in jobs}
    assert found == {"a": f"7 2 ['x', 'y'] ['rest'] True {tmp_path}", "b": f"1 9 ['none'] [] True {tmp_path}"}
    assert [(tmp_path / f"logs/{name}.log").read_text() for name in "ab"] == ["to its own log\n"] * 2


def test_a_process_that_dies_fails_its_job_alone_and_the_study_goes_on_after_it(tmp_path):
    first = job(tmp_path, "a", WRITE, seconds=9)
    dies = job(tmp_path, "b", "import os\nif not os.path.exists(made): open(made, 'w'); os.kill(os.getpid(), 9)")
    with pytest.raises(JobFailed, match="b ended with status -9"):
        Workers(tmp_path, 1).run([first, dies], progress=False)
    Workers(tmp_path, 1).run([first, dies], progress=False)
    assert order(tmp_path) == ["a", "b", "b"]


STUDY = """
import sys
sys.path[:0] = [{tools!r}, {root!r}]
from pathlib import Path
from study.jobs import Job
from lvr_jax.multihost.hosts import StopSignal
from study.workers import Workers
names = ("a", "b")
Workers(Path({here!r}), 1).run([Job(n, "train", ({here!r} + f"/{{n}}.py",), (), Path({here!r}, n + ".out"), 1.0, "1")
                                for n in names], progress=False, stop=StopSignal())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number, saved", [(signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_a_study_that_is_ended_ends_its_processes_and_begins_nothing_more(tmp_path, number, saved):
    """SIGTERM reaches the program, which saves; of a study that is killed nothing goes on that would hold a lock."""
    code = ("import os, signal, sys, time\n"
            "def save(*_):\n    open(made, 'w').write('saved'); sys.exit(143)\n"
            "signal.signal(signal.SIGTERM, save)\n"
            "open(made + '.pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")  # fmt: skip
    for name in ("a", "b"):
        job(tmp_path, name, code)
    own = STUDY.format(tools=str(ROOT / "tools"), root=str(ROOT), here=str(tmp_path))
    study = subprocess.Popen([sys.executable, "-c", own], stderr=subprocess.DEVNULL)
    pid = tmp_path / "a.out.pid"
    while not pid.exists() or not pid.read_text():
        assert study.poll() is None
        time.sleep(0.05)
    study.send_signal(number)
    study.wait(30)
    deadline = time.monotonic() + 10
    while _alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(pid.read_text()))
    assert (tmp_path / "a.out").exists() == saved and order(tmp_path) == ["a"]


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_forecast_is_bound_by_the_longest_chain_and_learns(tmp_path):
    jobs = [
        job(tmp_path, "a", "", seconds=10), job(tmp_path, "b", "", "a", seconds=30), job(tmp_path, "c", "", seconds=4)
    ]  # fmt: skip
    forecast = Forecast(jobs, 2)
    assert forecast.look(set(), []) == (0, 40), "a then b take longer than half of everything"
    forecast.learn(jobs[0], 10 + BELIEVED / 2)
    share, left = forecast.look({"a"}, [])
    assert share == pytest.approx(10 / 44) and left == pytest.approx(30 * (10 + 1.5 * BELIEVED) / (10 + BELIEVED))


# Its headline ----------------------------------------------------------------------------------------------------


def test_the_headline_counts_the_answers_content_and_has_the_letter_beside_it(tmp_path):
    """Of four replies three name the right word, and one of them picks the right letter."""
    from lvr_jax.evaluation.protocol import CLEAN
    from lvr_jax.evaluation.results import Header, Result, write_results
    from study.summary import _row

    run = study.Run("plain", "sft", (), 0, tmp_path, tmp_path)
    run.folder.mkdir(parents=True)
    found = [Result(str(i), i == 0, content="red", content_correct=i < 3) for i in range(4)]
    write_results(run.folder / "digit_search.jsonl", Header("digit_search", "scenes", "sft", CLEAN), found)
    name, content, letter, *rest = _row(run, None)
    assert (name, rest[-1]) == ("sft", "no latents")
    assert content.startswith("75.0 [") and letter.startswith("25.0 [")


# The whole ---------------------------------------------------------------------------------------------------------

SMALL = (
    "--config.train.steps=2", "--config.train.rows=2", "--config.questions=12", "--config.audited=12",
    "--config.draws=100", "--config.sigmas=1.0", "--config.runs.plain=lvr", "--config.runs.masked=",
    "--config.runs.bottleneck=lvr", "--config.runs.controls=", "--config.runs.believed=", "--noprogress",
)  # fmt: skip


def start(workdir: Path, checkpoint: Path, *more: str) -> Process:
    command = [ROOT / "tools/reproduce.py", "--workdir", workdir, f"--config.checkpoint={checkpoint}", *SMALL, *more]
    return Process(command)


def tables(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workdir / "report/tables").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, two_layers_checkpoint):
    workdir = tmp_path_factory.mktemp("study")
    process = start(workdir, two_layers_checkpoint)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return workdir, out


@pytest.mark.slow
def test_the_study_ends_in_a_report_of_all_settings(whole):
    workdir, out = whole
    for name in ("lvr", "bottleneck: lvr"):
        assert f"\n{name} " in out
    page = (workdir / "report/report.html").read_text()
    assert "All runs" in page and "The same interventions in every setting" in page and "Table 4" in page
    analyses = json.loads((workdir / "report/report.json").read_text())
    assert [a["name"] for a in analyses] == ["lvr", "bottleneck: lvr"]
    behind = json.loads((workdir / "runs/bottleneck-lvr/train/export/hf/config.json").read_text())
    assert behind["lvr_attention"] == "bottleneck"


@pytest.mark.slow
def test_a_finished_study_does_nothing_but_write_its_report_again(whole, two_layers_checkpoint):
    before, began = tables(whole[0]), time.monotonic()
    out, error = start(whole[0], two_layers_checkpoint).communicate(timeout=300)
    assert "nothing to train or measure" in error
    assert tables(whole[0]) == before and time.monotonic() - began < 200


@pytest.mark.parametrize("arguments, said", [
    (["--config.only=train,dance"], "only has 'dance'"),
    (["--config.only=audit"], "needs 'train"),
    (["--config.runs.plain=elvis"], "no configs/elvis.py"),
    (["--config.tempo=3"], "no such field"),
    (["--config.workers=-2"], "workers is -2, expected 0 (one a core) or more"),
])
def test_bad_input_is_one_line_and_status_2(warm, tmp_path, arguments, said):
    status, output = warm("reproduce", "--workdir", tmp_path, *SMALL, *arguments)
    assert status == 2 and "Traceback" not in output and said in output.strip().splitlines()[-1], output
