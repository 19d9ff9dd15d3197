"""Chooses the folder of the compilation cache, so that a restarted run compiles nothing, on any machine."""

import os

import jax

LOCAL = "~/.cache/lvr_jax/compilation"


def use_compilation_cache(setting: str, workdir: str | os.PathLike) -> None:
    """setting: a folder, "" for none, or "auto": JAX_COMPILATION_CACHE_DIR if that is set, else WORKDIR/compilation on
    a remote store and a folder of the user's otherwise.

    Programs that took a second to compile are kept, or whatever JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says.
    JAX writes a program from process 0 only, so a folder that other hosts do not see leaves them to compile theirs.
    """
    if setting == "auto":
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        workdir = os.fspath(workdir)
        setting = f"{workdir.rstrip('/')}/compilation" if "://" in workdir else LOCAL
    if setting:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(setting))
        if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
