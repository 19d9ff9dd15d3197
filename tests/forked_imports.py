"""What the fork server of tests imports once: the libraries of all programs, and no program itself."""

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jinja2  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import ml_collections.config_flags  # noqa: F401
import tqdm  # noqa: F401
from jax._src import xla_bridge

import lvr_jax.checkpoints
import lvr_jax.evaluation.runner
import lvr_jax.prism.experiment
import lvr_jax.prism.report.report
import lvr_jax.training.loop  # noqa: F401

if xla_bridge.backends_are_initialized():
    raise RuntimeError("an import started JAX, which no process can inherit")
PATH = [place for place in sys.path if place not in ("", str(Path(__file__).parent))]
gc.collect()
gc.freeze()         # what every program shares stays shared: collections do not write into it


def adopt(environment: Mapping[str, str]) -> None:
    """Makes an environment that of this process, also where JAX has read the server's already; the first place that
    modules are looked for is the program's own, which it fills."""
    for name in {*environment, *os.environ}:
        flag = name.lower()
        if name.startswith("JAX_") and environment.get(name) != os.environ.get(name) and flag in jax.config.values:
            held, value = jax.config.values[flag], environment.get(name)
            if isinstance(held, float) and value is not None:
                value = float(value)
            elif not isinstance(held, str | None):
                raise NotImplementedError(f"{name} of a forked program")
            jax.config.update(flag, value)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *PATH]
