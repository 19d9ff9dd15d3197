"""The programs that are checked ahead of time are compiled as a run compiles them."""

import importlib
from unittest import mock

import jax
import pytest

from aot import programs
from lvr_jax.models import compiler_options
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.input import Input
from lvr_jax.training.partitioning import make_mesh

ASKED = programs.Asked(items=1, prompt=256, conditions=1, new_tokens=2)


@pytest.fixture(scope="module")
def experiment():
    c = importlib.import_module("configs.lvr").get_config("tiny")
    c.init.checkpoint, c.data.tokenizer = "", "none"
    return Experiment.shapes(c, make_mesh(c.mesh, jax.devices()[:1]))


@pytest.mark.parametrize("make", [
    programs.train, lambda e: programs.prefill(e, ASKED), lambda e: programs.evaluate(e, ASKED),
    lambda e: programs.taught(e, ASKED), lambda e: programs.free(e, ASKED),
], ids=["train", "prefill", "evaluate", "taught", "free"])  # fmt: skip
def test_a_program_carries_the_options_of_its_chip(experiment, make):
    """An option that no compiler knows reaches it; without one, the same program is taken."""
    kind = experiment.mesh.devices.flat[0].device_kind
    with mock.patch.object(compiler_options, "TABLE", {kind: {"xla_no_such_option": 1}}), jax.set_mesh(experiment.mesh):
        program = make(experiment)
        lowered = program.jitted.lower(*program.args, **program.options)
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()


def test_a_step_of_questions_that_share_a_picture_has_the_shapes_of_its_input():
    c = importlib.import_module("configs.lvr").get_config("tiny")
    c.data.prefetch, c.data.sources.digits.questions = 0, 3
    c.branches.update({"shared": 40, "each": 48, "count": 3})
    c.rows, c.data.tokens, c.data.windows, c.data.max_per_row = 2, 40 + 3 * 48, 1, 1
    experiment = Experiment.from_config(c, make_mesh(c.mesh, jax.devices()[:1]))
    with jax.set_mesh(experiment.mesh):
        program = programs.train(experiment)
        program.jitted.lower(*program.args, **program.options)
    batch = next(Input(experiment.data, experiment.tokenizer, branches=experiment.branches)).arrays
    assert {k: x.shape for k, x in program.args[1].items()} == {k: x.shape for k, x in batch.items()}
    assert 0 < program.flops


def test_a_function_is_compiled_for_the_chips_of_the_ambient_mesh():
    double = compiler_options.Jit(lambda x: 2 * x)
    assert double(3) == 6 and double._cache_size() == 1 and double(4) == 8 and double._cache_size() == 1
    assert compiler_options.of_kind("TPU v5 lite") and not compiler_options.of_kind("cpu")
    with mock.patch.object(compiler_options, "TABLE", {"cpu": {"xla_no_such_option": 1}}):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            double(3)
    assert double(3) == 6


@pytest.mark.parametrize("kind", sorted(compiler_options.TABLE))
def test_a_kind_of_chip_has_a_peak(kind):
    """What is tuned can be measured against something: one name for a chip everywhere."""
    from aot.roofline import CHIPS
    from lvr_jax.training.flops import PEAK

    assert kind in PEAK and kind in CHIPS
    assert PEAK[kind] == pytest.approx(CHIPS[kind].clock * _flops_a_cycle(kind), rel=0.01)


def _flops_a_cycle(kind: str) -> int:
    """Units of a device x their multipliers x 2: cloud.google.com/tpu/docs."""
    units = {"TPU v5 lite": 4 * 128**2, "TPU v5": 8 * 128**2, "TPU v6 lite": 4 * 256**2, "TPU7x": 4 * 256**2}
    return 2 * units[kind]
