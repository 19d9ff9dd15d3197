"""A system or a condition that cannot be run is refused in one line that says why."""

import pytest
from latent_models import IDS

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.spec import SYSTEMS, SpecError, check_ids, plan, system


def one_line(error, *parts):
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts)


def test_an_unknown_system_is_named_with_those_that_exist():
    with pytest.raises(SpecError) as error:
        system("lvrr")
    one_line(error, "'lvrr'", "lantern", "monet")


def test_a_token_that_the_tokenizer_lacks_is_named():
    with pytest.raises(SpecError) as error:
        plan(SYSTEMS["lvr"], {"<|lvr_start|>": 1, "<|lvr|>": 2, "<|lvr_end|>": 3})
    one_line(error, "<|lvr_latent_end|>", "'lvr'")


def test_config_and_tokenizer_must_agree_on_ids():
    with pytest.raises(SpecError) as error:
        check_ids(SYSTEMS["lvr"], IDS, {"lvr_id": 7})
    one_line(error, "lvr_id is 7", str(IDS["<|lvr|>"]))
    check_ids(SYSTEMS["lvr"], IDS, {"lvr_id": None, "lvr_start_id": IDS["<|lvr_start|>"]})


@pytest.mark.parametrize("make, message", [
    (lambda: cond.Condition("x", sigma=float("nan")), "keep, mix, sigma"),
    (lambda: cond.absolute_noise(-1.0), "sigma is -1.0, expected 0 or more"),
    (lambda: cond.budget(5000), "budget is 5000, expected latents a block, 0 to 4096"),
    (lambda: cond.Condition("x", noise=7), "noise is 7"),
    (lambda: cond.Condition("x", mix=1.0), "source is None"),
    (lambda: cond.Condition("x", source="donor"), "source is donor"),
    (lambda: cond.only(cond.zero(), -1), "steps is (-1,)"),
    (lambda: cond.budget(-2), "budget is -2"),
    (lambda: cond.knock_out(9, 0, "x"), "blocked"),
    (lambda: cond.stack([cond.replaced("donor")], ["mean"], 1, 4), "needs the source 'donor'"),
    (lambda: cond.stack([cond.only(cond.zero(), 4)], [], 1, 4), "touches latent 4, the longest block has 4"),
])  # fmt: skip
def test_a_condition_that_means_nothing_is_refused(make, message):
    with pytest.raises(cond.ConditionError) as error:
        make()
    one_line(error, message)


def test_names_have_stable_numbers():
    """Files of an earlier run hold noise that was drawn from these."""
    assert (cond.name_number("clean"), cond.name_number("item0")) == (674693023, 1035783409)
    assert len({cond.name_number(f"item{n}") for n in range(10_000)}) == 10_000
