"""How the tests' own programs are compiled, and kept."""

import pytest
import quick
from jax._src.compilation_cache import compress_executable


def test_instructions_that_xla_does_not_know_are_refused(monkeypatch):
    """XLA itself warns, and uses all that there are: a run of the tests that says less than it seems to."""
    monkeypatch.setenv(quick.INSTRUCTIONS, "AVX2")
    assert "--xla_cpu_max_isa=AVX2" in quick.flags(2).split()
    monkeypatch.setenv(quick.INSTRUCTIONS, "AVX9")
    with pytest.raises(SystemExit, match="LVR_JAX_TESTS_ISA is 'AVX9', expected one of SSE4_2, AVX"):
        quick.flags()
    monkeypatch.delenv(quick.INSTRUCTIONS)
    assert "max_isa" not in quick.flags()


def test_kept_programs_that_are_torn_go_and_all_do_where_they_take_too_much(tmp_path, monkeypatch):
    whole = compress_executable(b"a program")
    for name, content in (("whole-cache", whole), ("torn-cache", whole[:-1]), ("torn", b"nobody's")):
        (tmp_path / name).write_bytes(content)
    quick.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "torn", "looked"}
    quick.tidy(tmp_path)
    assert (tmp_path / "whole-cache").read_bytes() == whole
    monkeypatch.setattr(quick, "ROOM", 3)
    quick.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"torn", "looked"}
