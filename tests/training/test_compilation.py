"""What a run compiles is kept where it was told to, if that took long enough."""

import jax
import pytest

from lvr_jax.training.compilation import use_compilation_cache

LEAST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def said(monkeypatch) -> dict[str, object]:
    said: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", said.__setitem__)
    return said


@pytest.mark.parametrize("least, kept", [("", {LEAST: 1.0}), ("0", {}), ("0.3", {})])
def test_a_second_is_long_enough_unless_the_environment_says_another_time(said, monkeypatch, least, kept):
    monkeypatch.setenv(LEAST.upper(), least)
    use_compilation_cache("here", "run")
    assert said == {"jax_compilation_cache_dir": "here", **kept}


def test_a_bucket_keeps_its_own_programs_unless_the_environment_names_a_folder(said, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "there")
    use_compilation_cache("auto", "gs://bucket/run/")
    assert not said
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    use_compilation_cache("auto", "gs://bucket/run/")
    assert said["jax_compilation_cache_dir"] == "gs://bucket/run/compilation"
