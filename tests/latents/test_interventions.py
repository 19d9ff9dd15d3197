"""Interventions of a sweep: directed donors, other prompts, other checkpoints' latents, lengths, what follows them."""

import dataclasses

import numpy as np
import pytest
import sweep_programs as programs
from latent_models import IDS
from test_machine import machine_run

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.sources import SOURCES, SourceError, recorded
from lvr_jax.latents.sweep import box_budgets
from lvr_jax.latents.sweep_files import read

NUMBERS = np.arange(8)
RECORDED = np.random.default_rng(3).standard_normal((7, 1, 2, 32)).astype(np.float32)
CONDITIONS = [
    *(cond.replaced(name) for name in ("self", "donor_directed", "donor_same_content", "blank_image", "elsewhere")),
    cond.box_budget(), cond.start_only(), cond.markers_only(), cond.with_image_hidden(cond.zero()),
    cond.in_context(cond.zero(), "blank"), cond.in_context(cond.clean(), "blank"),
    cond.in_context(cond.absolute_noise(0.0), "blank"), cond.in_context(cond.replaced("mean"), "blank"),
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interventions") / "sweep"
    numbers = np.array([cond.name_number(f"item{n}") for n in NUMBERS[:7]])        # nothing was recorded of item 7
    sources = {**SOURCES, "elsewhere": recorded(numbers, RECORDED, np.full((7, 1), 2))}
    programs.sweep_into(folder, batches=[range(8)], conditions=CONDITIONS, sources=sources)
    return read(folder)


def missing(swept, name) -> list[int]:
    return np.flatnonzero(swept.missing[swept.conditions.index(name)]).tolist()


@pytest.mark.slow
def test_a_directed_donor_has_the_items_kind_and_another_content(swept):
    clean = swept.of("clean")["blocks"]
    for name, same in (("donor_directed", False), ("donor_same_content", True)):
        donor = swept.donor[swept.conditions.index(name)]
        assert (donor != NUMBERS).all() and (donor % 2 == NUMBERS % 2).all()
        assert ((donor // 2 % 2 == NUMBERS // 2 % 2) == same).all()
        np.testing.assert_array_equal(swept.of(name)["blocks"], clean[donor])
    assert (swept.donor[swept.conditions.index("blank_image")] == -1).all()


def test_latents_of_a_blank_image_are_those_that_a_clean_pass_over_it_feeds(swept, tmp_path):
    part = programs.prompts(range(8))
    blank = dataclasses.replace(part, batch=lambda: part.variants["blank"]()[0])
    sweeper = programs.sweeper_of(keep=("blocks",))
    programs.run(sweeper, [blank], [], tmp_path / "blank")
    expected = read(tmp_path / "blank").of("clean")["blocks"]
    there = NUMBERS != 3
    np.testing.assert_allclose(swept.of("blank_image")["blocks"][there], expected[there], atol=1e-4)
    assert missing(swept, "blank_image") == [3]


def test_recorded_latents_are_fed_by_item_and_the_last_goes_on(swept):
    fed = swept.of("elsewhere")["blocks"][:7, 0]
    np.testing.assert_array_equal(fed[:, :2], RECORDED[:, 0])
    np.testing.assert_array_equal(fed[:, 2], RECORDED[:, 0, 1])
    assert missing(swept, "elsewhere") == [7]


def test_a_box_gives_its_own_number_of_latents_and_the_budget_at_most(swept):
    """Boxes of four image tokens under a budget of three; one of two tokens below."""
    count = swept.of("box_budget")["count"][:, 0]
    assert (count == 3).all() and missing(swept, "box_budget") == [5]
    regions = {"box": [[np.arange(2)], None, [np.arange(9)]]}
    budget, none = box_budgets(regions, programs.PLAN, 3)
    assert budget[:, 0].tolist() == [2, 3, 9] and none.tolist() == [False, True, False]


def test_after_a_start_marker_alone_nothing_is_forced(swept):
    start, free, forced = (swept.of(name) for name in ("start_only", "clean", "markers_only"))
    assert not start["latent"].any() and free["latent"].any()
    assert (forced["token"][:, 1] == IDS["<|lvr_end|>"]).all() or (forced["token"][:, 0] == IDS["<|lvr_end|>"]).all()
    wanted = np.full((2, 40), 7)
    wanted[:, 1] = IDS["<|lvr_start|>"]
    tokens = machine_run("lantern", 4, wanted, cond.start_only())["token"]        # a system that forces its end marker
    assert IDS["<|lvr_end|>"] not in tokens
    assert IDS["<|lvr_end|>"] in machine_run("lantern", 4, wanted)["token"]


def test_in_another_context_own_latents_are_those_of_the_own_prompt(swept):
    clean = swept.of("clean")["blocks"]
    for name in ("clean+blank_context", "noise_0+blank_context"):
        np.testing.assert_allclose(swept.of(name)["blocks"], clean, atol=1e-6)
        assert missing(swept, name) == [3]
    assert not swept.of("zero+blank_context")["blocks"].any()
    mean = clean[:, 0].mean((0, 1))
    np.testing.assert_allclose(swept.of("mean+blank_context")["blocks"][0, 0, 0], mean, atol=1e-6)
    own, other = swept.of("clean")["letters@answer"], swept.of("clean+blank_context")["letters@answer"]
    assert (np.abs(own - other)[NUMBERS != 3] > 1e-3).any()                          # the context did change


def test_a_condition_keeps_its_identity_on_disk(swept):
    assert swept.records == [cond.clean(), *CONDITIONS]
    record = swept.records[swept.conditions.index("zero+blank_context")]
    assert (record.kind, record.evidence, record.context) == ("zero", cond.PATH, "blank")
    assert cond.only(cond.zero(), 2).latent == 2 and cond.relative_noise(0.3).strength == 0.3


def test_a_mix_with_own_latents_cannot_be_read_in_another_context():
    mixed = cond.Condition("half", keep=0.5, mix=0.5, source="donor")
    with pytest.raises(cond.ConditionError, match="condition 'half' mixes latents"):
        cond.in_context(mixed, "blank")


def test_a_prompt_that_the_items_lack_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"needs the prompt 'counterfactual', the items have \['blank'\]"):
        programs.sweep_into(tmp_path / "refused", batches=[range(2)], conditions=[cond.replaced("counterfactual")])


PATCHED = [cond.patched(cond.replaced("donor_directed"), position, layer)
           for position in ("h0", "latent_0", "latent_2", "after_1") for layer in (0, 1, 2)]  # fmt: skip


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patched") / "sweep"
    conditions = [cond.replaced("donor_directed"), *PATCHED, cond.patched(cond.absolute_noise(0.3), "latent_1", 0),
                  cond.absolute_noise(0.3)]  # fmt: skip
    programs.sweep_into(folder, batches=[range(8)], conditions=conditions, keep=("hidden", "token", "live", "fed"))
    return read(folder)


def test_a_patch_brings_the_clean_state_back_where_it_is_put_in_and_nothing_before(patched):
    """The last layer's patch gives the clean run's output at that step; steps before it are the corrupted run's."""
    clean, donor = patched.of("clean"), patched.of("donor_directed")
    first = int(np.flatnonzero((clean["fed"] != 0).any((0, 2)))[0])                # the step that consumes latent 0
    for position, step in (("latent_0", first), ("latent_2", first + 2)):
        run = patched.of(f"donor_directed|{position}:2")
        np.testing.assert_allclose(run["hidden"][:, step], clean["hidden"][:, step], atol=1e-4)
        np.testing.assert_allclose(run["hidden"][:, :step], donor["hidden"][:, :step], atol=1e-4)
        assert (np.abs(donor["hidden"] - clean["hidden"])[:, step] > 1e-2).any()


def test_patching_what_is_fed_is_feeding_the_own_latent_at_that_step_alone(patched, tmp_path):
    """Layer 0 of a latent: the donor's latents elsewhere, the own one there; an affine map says the same."""
    run, clean, donor = (patched.of(n) for n in ("donor_directed|latent_0:0", "clean", "donor_directed"))
    only = cond.only(cond.replaced("donor_directed"), 1, 2)
    programs.sweep_into(tmp_path / "only", batches=[range(8)], conditions=[only], keep=("hidden", "token", "live"))
    expected = read(tmp_path / "only").of(only.name)
    np.testing.assert_array_equal(run["token"], expected["token"])
    np.testing.assert_allclose(run["hidden"], expected["hidden"], atol=1e-3)
    assert (donor["token"] != clean["token"]).any()


def test_a_patched_run_draws_the_noise_of_the_run_that_it_patches(patched):
    fed = patched.of("noise_0.3")["fed"], patched.of("noise_0.3|latent_1:0")["fed"]
    first = int(np.flatnonzero((fed[0] != 0).any((0, 2)))[0])
    np.testing.assert_allclose(fed[1][:, : first + 1], fed[0][:, : first + 1], atol=1e-5)


@pytest.mark.parametrize("position, layer, message", [
    ("latent_1", 3, "patches layer 3, the network has 0 \\(what is fed\\) to 2"), ("latent_9", 1, "patches 'latent_9'"),
])  # fmt: skip
def test_a_patch_where_nothing_is_is_refused_before_anything_runs(position, layer, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        programs.sweep_into(tmp_path / "refused", batches=[range(2)],
                            conditions=[cond.patched(cond.zero(), position, layer)])  # fmt: skip
    assert not (tmp_path / "refused").exists()
