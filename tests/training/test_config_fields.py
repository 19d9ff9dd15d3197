"""A number that cannot be meant is refused by name, before anything is made."""

import math

import pytest

from configs import common
from lvr_jax.training.config_fields import NUMBERS, ConfigFieldError, check_numbers
from lvr_jax.training.experiment import Experiment


def config(**fields):
    c = common.get_config("tiny")
    c.update_from_flattened_dict(fields)
    return c


@pytest.mark.parametrize("size", common.SIZES)
def test_what_experiments_share_passes_and_has_every_field_that_is_checked(size):
    check_numbers(common.get_config(size))


@pytest.mark.parametrize("name, allowed", NUMBERS.items())
def test_what_is_below_a_range_is_refused_by_name(name, allowed):
    kind = int if allowed.whole else float
    low = kind(allowed.least) if allowed.above else kind(allowed.least - 1)
    with pytest.raises(ConfigFieldError, match=f"^{name} is {low!r}, expected a "):
        check_numbers(config(**{name: low}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optimizer.peak": math.nan}, "optimizer.peak is nan, expected a number, at least 0"),
        ({"init.fork_at": 1.5}, "init.fork_at is 1.5, expected a number, at least 0, at most 1"),
        ({"optimizer.betas": (0.9, 1.0)}, "expected of each a number, at least 0, below 1"),
        ({"objective.stage_weights": ("one",)}, "expected of each a number, at least 0"),
        ({"objective.noise": math.inf}, "objective.noise is inf, expected a number, at least 0"),
        ({"steps": 10**20}, "steps is 1000.*, expected a whole number, at least 0, at most 2147483647"),
        ({"seed": 2**32}, "seed is 4294967296, expected a whole number, at least 0, at most 4294967295"),
        ({"reconstruction.points": ((0.0, math.nan),)}, r"reconstruction.points is .*, expected one or more \(share"),
        ({"reconstruction.points": ((0.0, -1.0),)}, "and of each value a number, at least 0"),
        ({"own.points": ((1.5, 0.0),)}, "own.points is .*, expected one or more"),
    ],
)
def test_what_is_no_number_of_its_field_is_refused(fields, message):
    with pytest.raises(ConfigFieldError, match=message):
        check_numbers(config(**fields))


def test_a_field_that_is_missing_is_named():
    c = config()
    del c.held_out.every
    with pytest.raises(ConfigFieldError, match="held_out.every is missing"):
        check_numbers(c)


def test_every_stage_of_the_template_has_a_weight():
    with pytest.raises(ConfigFieldError, match="has 1 entries, expected one for each of the 2 stages .*'p_lvr_2'"):
        Experiment.shapes(config(**{"data.template": "p_lvr_2"}))


def test_gradients_may_go_unclipped():
    check_numbers(config(**{"optimizer.clip": math.inf}))
