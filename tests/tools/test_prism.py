"""The audit as a program writes its report, goes on where it was stopped, and says in one line what is wrong."""

import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from forked import Process

from lvr_jax.prism import experiment
from lvr_jax.prism.report import report

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "checkpoints"
NAMES = ("tiny_tied_trained_lvr", "tiny_tied_trained_plvr2")
SMALL = (
    "--config.benchmark=digit_search", "--config.options=size=12, options=2", "--config.budget=2", "--config.rows=6",
    "--config.switches=max_new_tokens=12", "--config.force_latents=True", "--config.draws=200", "--config.gallery=2",
    "--config.conditions.names=zero,donor,self,mean,oracle", "--config.conditions.sigmas=0.1,1",
    "--config.conditions.alphas=()", "--config.conditions.per_latent=zero", "--config.attention=clean,zero",
    "--config.probes.controls=5", "--config.probes.ladder=()", "--config.alignment.count=6",
    "--config.sensitivity.count=6", "--config.patching.count=4", "--config.patching.layers=(0, 1)", "--noprogress",
)  # fmt: skip


def get_config():
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.get_config()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two golden checkpoints that emit latents, with their tokenizer, and a common cache of compiled programs."""
    place = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        shutil.copytree(GOLDEN / name, place / name)
        shutil.copy(GOLDEN / "tokenizer.json", place / name)
        (place / name / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 12544}')
    return place


def command(checkpoints, workdir) -> list[str]:
    folders = ",".join(str(checkpoints / name) for name in NAMES)
    return ["--config", str(ROOT / "configs" / "prism.py"), f"--config.checkpoint={folders}", "--workdir", str(workdir),
            *SMALL]  # fmt: skip


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")
            if p.is_file() and "report" not in p.parts}  # fmt: skip


@pytest.fixture(scope="module")
def whole(checkpoints, tmp_path_factory):
    """By a process of its own, which says where the report is and, besides, what it is doing."""
    workdir = tmp_path_factory.mktemp("prism") / "whole"
    process = Process([ROOT / "tools" / "prism.py", *command(checkpoints, workdir)])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.strip() == str(workdir / "report" / "report.html")
    return workdir


@pytest.mark.slow
def test_two_checkpoints_give_a_whole_report(whole):
    report = whole / "report"
    page = (report / "report.html").read_text()
    analyses = json.loads((report / "report.json").read_text())
    assert [a["name"] for a in analyses] == list(NAMES)
    assert [a["system"] for a in analyses] == ["lvr", "p_lvr"]
    for a in analyses:
        assert a["clean"]["triggered"] == a["items"] == 12 and len(a["answers"]) == 12
        names = {e["name"] for e in a["conditions"]}
        assert {"zero", "donor", "self", "mean", "oracle", "noise_0.1", "noise_1", "zero@0", "zero@1"} <= names
        assert a["alignment"] and a["attention"].keys() == {"clean", "zero"} and a["sensitivity"]["items"] > 0
        assert a["patching"]["layers"] == [0, 1] and a["lens"]["by"] and "donor" in a["argued"]
    assert list(analyses[1]["alignment"]) == ["context", "target"]
    for key in ("table-1", "table-2", "table-3", "table-4"):
        assert (report / "tables" / f"{key}.csv").read_text().count("\n") > 5
    for key in ("figure-1", "figure-4", "figure-5", "sigma-curve", f"knock-outs-{NAMES[0]}", f"attention-{NAMES[1]}"):
        assert (report / "figures" / f"{key}.png").stat().st_size > 5_000
        assert (report / "figures" / f"{key}.pdf").stat().st_size > 5_000
        assert f'id="{key}"' in page
    lines = (report / "tables" / f"answers-{NAMES[0]}.csv").read_text().splitlines()
    assert len(lines) == 1 + 12 * (1 + len(analyses[0]["conditions"]))


@pytest.mark.slow
def test_the_same_command_does_nothing_twice(whole, checkpoints, warm):
    before, json_before = stamps(whole), (whole / "report" / "report.json").read_bytes()
    status, said = warm("prism", *command(checkpoints, whole))
    assert status == 0, said
    assert stamps(whole) == before
    assert (whole / "report" / "report.json").read_bytes() == json_before
    assert "analysis" not in said


@pytest.mark.parametrize("fields, message", [
    ({"checkpoint": "/nowhere"}, "/nowhere: no such folder"),
    ({"checkpoint": ""}, "checkpoint: none given"),
    ({"benchmark": "chess"}, "no benchmark 'chess'"),
    ({"conditions.names": "zero,swapp"}, "conditions.names has 'swapp'"),
    ({"options": "size=3, options=2"}, "condition 'donor_directed': kind of question 'digit' has one item, expected"),
    ({"conditions.contexts": "absent"}, "conditions.contexts is 'absent', expected some of hidden, blank"),
    ({"conditions.crossed": "zeros"}, "conditions.crossed has 'zeros', expected some of zero"),
    ({"options": "size=8, options=2, kinds=('position',)", "conditions.names": "counterfactual"},
     "condition 'counterfactual' needs the prompt 'counterfactual' of each item, these items have blank"),
    ({"options": "size"}, "options is 'size', expected name=value"),
    ({"options": "size=0"}, "DigitSearch.size = 0"),
    ({"options": "size=4, options=0"}, "is an open question"),
    ({"protocol": "papers"}, "no protocol 'papers'"),
    ({"system": "swimbird"}, "latent system 'swimbird' does not exist"),
    ({"capture.layers": "some"}, "capture.layers is 'some', expected last, all"),
    ({"conditions.sigmas": (0.1, -1.0)}, "expected numbers above 0"),
    ({"conditions.sigmas": ("nan",)}, "expected numbers above 0"),
    ({"conditions.alphas": (math.inf,)}, "expected numbers above 0"),
    ({"conditions.chunk": -1}, "conditions.chunk is -1, expected 0 (as many as fit) or more"),
    ({"conditions.memory": 0.0}, "conditions.memory is 0.0, expected bytes, more than 0"),
    ({"programs": 0}, "programs is 0, expected 1 at least"),
    ({"seed": -1}, "seed is -1, expected 0 or more"),
    ({"gallery": -1}, "gallery is -1, expected 0 (none) or more"),
    ({"alignment.latents": 0}, "alignment.latents is 0, expected 1 at least"),
    ({"sensitivity.count": -1}, "sensitivity.count is -1, expected 0 (none) or more"),
    ({"conditions.budgets": (1.5,)}, "expected whole numbers above 0"),
    ({"names": "one,two,three"}, "names has 3 entries, expected 1"),
    ({"variants": "one,two"}, "variants has 2 entries, expected 1"),
    ({"patching.layers": (0, 9)}, "patching.layers has 9, this network has 0 (what is fed) to"),
    ({"patching.condition": "swap"}, "patching.condition has 'swap', expected some of zero"),
    ({"probes.content": "letters"}, "probes.content is 'letters', expected auto, closed, options, none"),
    ({"probes.content": "closed", "options": "size=4, options=2"}, "probes.content is 'closed', but kind of question"),
    ({"names": "report"}, "cannot be called 'report'"),
    ({"attention": "clean,donor_paper"}, "'donor_paper' is not among the audit's conditions"),
])  # fmt: skip
def test_bad_input_is_one_line(checkpoints, tmp_path, fields, message):
    config = get_config()
    config.update_from_flattened_dict({
        "checkpoint": str(checkpoints / NAMES[0]), "benchmark": "digit_search", "options": "size=4, options=2", **fields
    })  # fmt: skip
    with pytest.raises(experiment.BAD_INPUT, match=re.escape(message)) as error:
        experiment.run(config, tmp_path / "none", progress=False)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "none").rglob("*.npz"))


@pytest.mark.parametrize("arguments, message", [
    (("--config.checkpoint=/nowhere",), "/nowhere: no such folder"),
    (("--config.nothing=1", "left over"), "no such field"),
    ((f"--config={ROOT / 'configs' / 'prism.py'}:lite",), "expected no argument, `paper` or `light`"),
])  # fmt: skip
def test_the_program_says_it_in_one_line_with_status_two(warm, tmp_path, arguments, message):
    status, said = warm("prism", "--config", ROOT / "configs" / "prism.py", "--workdir", tmp_path, *SMALL, *arguments)
    last = said.strip().splitlines()[-1]
    assert status == 2 and last.startswith("prism: ") and message in last and "Traceback" not in said
    assert "report.html" not in said


@pytest.mark.parametrize("folder, label", [("..", ".."), ("runs/..", ".."), ("runs/a", "../b"), ("runs/a", "/etc")])
def test_no_name_of_a_checkpoint_leads_out_of_the_workdir(folder, label):
    given = () if label == ".." else (label,)
    assert experiment.labels_of((folder,), given) == (label,)
    assert Path("work", report.slug(label)).resolve().parent == Path("work").resolve()


def test_help_has_an_example(warm):
    assert "python tools/prism.py --config configs/prism.py" in warm("prism", "--help")[1]
