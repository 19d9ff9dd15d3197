"""A damaged golden case fails by itself, and the others are still compared."""

import shutil
import sys
from pathlib import Path

import numpy as np

import check_golden

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_damaged_case_is_a_failed_line_beside_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "cases").mkdir()
    (tmp_path / "checkpoints").symlink_to(GOLDEN / "checkpoints")
    shutil.copy(GOLDEN / "cases" / "A0_preprocess_150x43.npz", tmp_path / "cases")
    (tmp_path / "cases" / "A1_garbage.npz").write_bytes(b"x" * 100)
    np.savez(tmp_path / "cases" / "A1_nometa.npz", a=np.zeros(3))
    np.savez(tmp_path / "cases" / "A1_notjson.npz", meta=np.array("{"))
    monkeypatch.setattr(sys, "argv", ["check_golden", str(tmp_path)])
    assert check_golden.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL A1_") for line in lines) == 3
    assert any(line.startswith("ok   A0_") for line in lines)
    assert lines[-1].endswith(", 3 failed")
