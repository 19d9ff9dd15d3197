"""How the tests' own programs are compiled."""

import pytest
import quick


def test_instructions_that_xla_does_not_know_are_refused(monkeypatch):
    """XLA itself warns, and uses all that there are: a run of the tests that says less than it seems to."""
    monkeypatch.setenv(quick.INSTRUCTIONS, "AVX2")
    assert "--xla_cpu_max_isa=AVX2" in quick.flags(2).split()
    monkeypatch.setenv(quick.INSTRUCTIONS, "AVX9")
    with pytest.raises(SystemExit, match="LVR_JAX_TESTS_ISA is 'AVX9', expected one of SSE4_2, AVX"):
        quick.flags()
    monkeypatch.delenv(quick.INSTRUCTIONS)
    assert "max_isa" not in quick.flags()
