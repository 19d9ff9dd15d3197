"""Has programs and modules compiled quickly, and once for all processes of this and later sessions of tests.

What programs compute is compared, not how fast they do. `conftest.py` says so to whatever a test runs in its own
process, and by inheritance to the processes it starts; `flags` are for those that need a number of devices.
"""

import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jaxlib
from jaxlib.version import __version_info__ as JAXLIB

# A third of the time.
LEVEL = "--xla_backend_optimization_level=0"
# A fifth of the rest: a small program is one module for LLVM, not 32 of them.
ONE_MODULE = "--xla_cpu_parallel_codegen_split_count=1"
# Half of the rest on jaxlib before 0.11; later ones do not know it, and a flag that is not known ends a process. Two
# programs that share a part may then round it apart: those that have to agree bit for bit are compiled with FUSED.
HAS_EMITTERS = JAXLIB < (0, 11)
UNFUSED = ("--xla_cpu_use_fusion_emitters=false",) if HAS_EMITTERS else ()
OPTIONS = (LEVEL, "--xla_llvm_disable_expensive_passes=true", ONE_MODULE, *UNFUSED)
FUSED = {"xla_cpu_use_fusion_emitters": True} if HAS_EMITTERS else {}
# Of a program that computes for longer than all this saves.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False, **FUSED}
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
ROOM = 2 * 2**30    # bytes of programs that are kept; the suite makes a twentieth
# Threads of linear algebra wait for each other by spinning: with two of them tests of probes take twice the time.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# AVX2, say: instructions that programs keep to, as if the processor had no more.
INSTRUCTIONS = "LVR_JAX_TESTS_ISA"
KNOWN = ("SSE4_2", "AVX", "AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AMX", "AMX_FP16")


def flags(devices: int = 1, options: Sequence[str] = OPTIONS) -> str:
    """XLA_FLAGS of a process with so many devices."""
    limit = [f"--xla_cpu_max_isa={asked}"] if (asked := os.environ.get(INSTRUCTIONS)) else []
    if asked and asked not in KNOWN:        # XLA would only warn, and use all that there are
        raise SystemExit(f"{INSTRUCTIONS} is {asked!r}, expected one of {', '.join(KNOWN)}")
    return " ".join((*options, *limit, f"--xla_force_host_platform_device_count={devices}"))


def begin(folder: Path) -> None:
    """Sets the environment of this process before JAX starts; the folder outlasts the session.

    Where Python is told to write no bytecode and none was installed, each process would compile the modules of JAX
    anew, 5 s of its start. What was installed would not be looked for in another place.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", flags())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    if PROGRAMS not in os.environ:
        programs = folder / f"programs-{_processor()}"
        os.environ[PROGRAMS] = str(programs)
        tidy(programs)
    if sys.dont_write_bytecode and not os.path.exists(importlib.util.cache_from_source(jaxlib.__file__)):
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(folder / "bytecode")


def _processor() -> str:
    """A name for its instructions: where machines share a checkout, each has programs that it can run."""
    said = Path("/proc/cpuinfo")
    found = re.findall(r"^(?:flags|Features)\s*:(.*)$", said.read_text(), re.MULTILINE) if said.exists() else []
    return hashlib.sha256(f"{platform.machine()} {found[:1]}".encode()).hexdigest()[:8]


def tidy(programs: Path) -> None:
    """Makes room, and takes away programs that are torn: JAX writes them in place, and tests kill processes that do.
    Each is looked at once."""
    programs.mkdir(exist_ok=True)
    looked = programs / "looked"
    since = looked.stat().st_mtime_ns if looked.exists() else 0
    looked.touch()
    found = {path: path.stat() for path in programs.glob("*-cache")}
    full = sum(stat.st_size for stat in found.values()) > ROOM
    for path, stat in found.items():
        if full or stat.st_mtime_ns >= since and _torn(path):
            path.unlink(missing_ok=True)


def _torn(path: Path) -> bool:
    from jax._src.compilation_cache import decompress_executable  # which reads the environment

    try:
        decompress_executable(path.read_bytes())
    except Exception:       # of whichever library JAX has compressed it with
        return True
    return False
