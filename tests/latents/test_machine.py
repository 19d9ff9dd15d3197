"""The state machine does what each published decoding loop does, written down here one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_models import IDS, STOP, TEXT

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.machine import Machine
from lvr_jax.latents.spec import SYSTEMS, plan

V, S, ROWS, NEW = 64, 40, 96, 24


@jax.jit
def _drive(the_plan, condition, wanted):
    machine = Machine(the_plan, condition, Decoding(max_new_tokens=NEW, stop=(STOP,)), 1, ROWS)
    row = machine.start(jnp.full((1, ROWS), 5), jnp.zeros((1, ROWS, 1)), None)

    def step(row, s):
        seen = {"latent": row.inside, "live": ~row.finished, "stage": row.stage, "index": row.place}
        logits = jax.nn.one_hot(wanted[:, s], V)[None]
        row = machine.advance(row, row.hidden, logits, jnp.full(ROWS, -1), s, None, jnp.arange(ROWS), 0)
        return row, seen | {"token": row.token}

    return jax.lax.scan(step, row, jnp.arange(S))[1]


def machine_run(system: str, budget: int, wanted: np.ndarray, condition=None):
    """The machine driven by a model that wants token wanted[b, s] at step s: tokens, latent flags, live, stages."""
    the_plan = plan(SYSTEMS[system], IDS, budget)
    condition = cond.stack([condition or cond.clean()], [], len(the_plan.start), 1)
    filled = np.concatenate([wanted, np.repeat(wanted[:1], ROWS - len(wanted), 0)])
    out = _drive(the_plan, condition, jnp.asarray(filled))
    return {k: np.asarray(v)[:, 0].T[: len(wanted)] for k, v in out.items()}


# --- The published loops, each as its authors wrote it: one answer, plain Python. Yields (input, stored id), where the
# input of a step is "h" or the id that is fed. `wants(s)` is what the model picks at step s; step 0 is the prompt's.


def lvr_loop(markers: dict[int, int], wants, new: int):
    """lvr and cosine-misleads, `steps`: quota from the fed start marker on, nothing forced, ids as they are picked."""
    mode, remaining, last, out = False, 0, 5, []
    for s in range(S):
        fed = "h" if mode else last
        picked = wants(s)
        entered = not mode and last in markers
        if entered:
            remaining = markers[last]
        elif mode:
            remaining -= 1
        mode = (mode or entered) and remaining > 0
        out.append((fed, picked))
        last = picked
        if not mode and (picked == STOP or s + 1 >= new):
            break
    return out


def lantern_loop(start: int, slot: int, end: int, wants, new: int, size: int):
    """LanteRn: entered when the start marker is picked, `size` states with the slot's id, then the end is forced."""
    out, queue, last = [], [], 5
    for s in range(S):
        fed, stored = (queue.pop(0) if queue else (last, None))
        picked = wants(s) if stored is None else stored
        if not queue and stored is None and picked == start:
            queue = [(start, slot if size else end)] + [("h", slot if j + 1 < size else end) for j in range(size)]
            queue += [(end, None)]
        out.append((fed, picked))
        last = picked
        stop = picked == STOP or s + 1 >= new
        if stop and not (queue and queue[0][0] == "h"):
            break
    return out


def monet_loop(start: int, end: int, wants, new: int, size: int):
    """Monet in vLLM: a picked start marker's slot and those after it get the state before; `size` in all, then end."""
    out, count, inside, last, force = [], 0, False, 5, False
    for s in range(S):
        fed = "h" if inside else last
        picked = end if force else wants(s)
        force = False
        if inside:
            count += 1
            if count >= size or picked == end:
                inside, picked = False, end
            elif picked == STOP:
                inside = False
        elif picked == start:
            inside, count = size > 0, 0
            force = size == 0
        out.append((fed, picked))
        last = picked
        if not inside and (picked == STOP or s + 1 >= new):
            break
    return out


def mirage_loop(start, pad, end, wants, new, size, reset: bool, keep_ids: bool = False, first=None):
    """Mirage (no cap on later blocks), ILVR (counters reset at each start); Laser keeps the ids that were picked."""
    out, inside, left, blocks, last = [], False, 0, 0, 5
    for s in range(S):
        fed = "h" if inside else last
        picked = first if first is not None and s == 0 else wants(s)
        if inside:
            left -= 1
            if left == 0 or picked == end:
                inside, picked = False, end
        elif last == start:
            left = size if reset or blocks == 0 else -1
            blocks += 1
            inside = left != 0
            picked = picked if inside else end
        if inside and not keep_ids:
            picked = pad
        out.append((fed, picked))
        last = picked
        if not inside and (picked == STOP or s + 1 >= new):
            break
    return out


def published(system: str, budget: int):
    """wants, new -> the published loop's steps."""
    at = lambda k=0: tuple(IDS[getattr(SYSTEMS[system].stages[k], f)] for f in ("start", "slot", "end"))  # noqa: E731
    start, slot, end = at()
    lvr = lambda wants, new: lvr_loop({start: budget}, wants, new)  # noqa: E731
    return {
        "lvr": lvr,
        "v_reflection": lvr,
        "lvr_latent_end": lvr,      # without the embedding its checkpoints have, it counts
        "lantern": lambda wants, new: lantern_loop(start, slot, end, wants, new, budget),
        "monet": lambda wants, new: monet_loop(start, end, wants, new, budget),
        "mirage": lambda wants, new: mirage_loop(start, slot, end, wants, new, budget, reset=False),
        "ilvr": lambda wants, new: mirage_loop(start, slot, end, wants, new, budget, reset=True),
        "laser": lambda wants, new: mirage_loop(
            start, slot, end, wants, new, budget, reset=True, keep_ids=True, first=start
        ),
        # Stages one after the other; a marker of another stage inside a block is another test's matter.
        "p_lvr": lambda wants, new: lvr_loop({start: 2 * budget, at(1)[0]: budget}, wants, new),
    }[system]  # fmt: skip


def drawn(system: str, seed: int) -> np.ndarray:
    """What the model wants, [ROWS, S]: text, with plenty of this system's markers and now and then the stop id."""
    rng = np.random.default_rng(seed)
    stages = SYSTEMS[system].stages
    special = [IDS[t] for s in stages for t in (s.start, s.slot, s.end)]
    text = rng.integers(6, 15, (ROWS, S))
    marker = rng.choice(special, (ROWS, S))
    wanted = np.where(rng.random((ROWS, S)) < 0.3, marker, text)
    wanted[rng.random((ROWS, S)) < 0.03] = STOP
    wanted[:, 0] = np.where(rng.random(ROWS) < 0.7, IDS[stages[0].start], wanted[:, 0])
    return wanted


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_machine_is_the_published_loop(system):
    for budget in (1, 3, 8):
        wanted = drawn(system, budget)
        if len(SYSTEMS[system].stages) > 1:     # no marker inside a block
            for row in wanted:
                _without_markers_inside(row, system, budget)
        ours = machine_run(system, budget, wanted)
        loop = published(system, budget)
        for b in range(ROWS):
            theirs = loop(lambda s: int(wanted[b, s]), NEW)  # noqa: B023
            n = len(theirs)
            assert ours["live"][b].sum() == n
            assert ours["token"][b, :n].tolist() == [stored for _, stored in theirs]
            assert ours["latent"][b, :n].tolist() == [fed == "h" for fed, _ in theirs]
            assert not ours["token"][b, n:].any()


def _without_markers_inside(row: np.ndarray, system: str, budget: int) -> None:
    starts = {IDS[s.start]: budget * s.quota for s in SYSTEMS[system].stages}
    s = 0
    while s < S:
        quota = starts.get(int(row[s]), 0)
        inside = slice(s + 1, s + 1 + quota)        # ids picked while the marker and all but the last latent are fed
        row[inside] = np.where(np.isin(row[inside], list(starts)), 7, row[inside])
        s += 1 + quota


def inputs(ours, b=0):
    """What is fed after the prompt's last token: `h` for a state, else the id."""
    n = int(ours["live"][b].sum())
    return ["h" if ours["latent"][b, s] else int(ours["token"][b, s - 1]) for s in range(1, n)]


def wants(*ids, then=7):
    return np.array([[*ids, *[then] * (S - len(ids))]])


def marker(system, which, stage=0):
    return IDS[getattr(SYSTEMS[system].stages[stage], which)]


def test_lvr_with_three_latents_feeds_start_three_states_and_the_next_argmax():
    start = marker("lvr", "start")
    ours = machine_run("lvr", 3, wants(start, 6, 8, 9, 10, 11, STOP))
    assert inputs(ours) == [start, "h", "h", "h", 10, 11]
    assert ours["token"][0, :7].tolist() == [start, 6, 8, 9, 10, 11, STOP]       # junk ids are stored as they are


def test_lantern_feeds_start_eight_states_and_its_end():
    start, slot, end = (marker("lantern", w) for w in ("start", "slot", "end"))
    ours = machine_run("lantern", 8, wants(start, *[7] * 10, STOP))
    assert inputs(ours) == [start, *["h"] * 8, end, 7]
    assert ours["token"][0, :11].tolist() == [start, *[slot] * 8, end, 7]


def test_monet_overwrites_the_start_and_feeds_ten_states_in_all():
    start, end = marker("monet", "start"), marker("monet", "end")
    ours = machine_run("monet", 10, wants(start, *[7] * 12, STOP))
    assert inputs(ours) == [*["h"] * 10, end, 7, 7]


def test_mirage_caps_its_first_block_only_and_ilvr_every_one():
    for system, second in (("mirage", 6), ("ilvr", 2)):
        start, end = marker(system, "start"), marker(system, "end")
        # step 0 opens; the block of 2 closes at step 3; the second opens at step 5; `end` is wanted at step 12
        wanted = wants(start, 6, 6, 6, 6, start, *[8] * 6, end, STOP)
        fed = inputs(machine_run(system, 2, wanted))
        assert fed[:4] == [start, "h", "h", end]
        assert fed[fed.index(start, 1) + 1 :].index(end) == second


def test_laser_starts_with_its_marker_whatever_the_model_wants():
    start = marker("laser", "start")
    ours = machine_run("laser", 3, wants(9, 9, 9, 9, STOP))
    assert inputs(ours)[:5] == [start, "h", "h", "h", marker("laser", "end")]


@pytest.mark.parametrize("system", ["monet", "mirage", "ilvr", "laser"])
def test_a_predicted_end_marker_leaves_the_block_early(system):
    start, end = marker(system, "start"), marker(system, "end")
    fed = inputs(machine_run(system, 8, wants(start, 6, 6, end, STOP)))
    assert fed.count("h") == (3 if system == "monet" else 2)
    assert end in fed


@pytest.mark.parametrize("system", ["lvr", "lantern", "p_lvr"])
def test_an_end_marker_inside_does_not_shorten_blocks_that_only_count(system):
    start, end = marker(system, "start"), marker(system, "end")
    fed = inputs(machine_run(system, 4, wants(start, 6, end, end, end, 6, 6, 6, 6, 6, STOP)))
    assert fed.count("h") == 4 * SYSTEMS[system].stages[0].quota


def test_a_stop_inside_ends_monets_answer_and_nobody_elses():
    for system in SYSTEMS:
        start = marker(system, "start")
        ours = machine_run(system, 6, wants(start, 6, STOP, 6, 6))
        assert (ours["live"][0].sum() == 3) == (system == "monet")


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_markers_only_is_start_then_end_then_text(system):
    start, end = marker(system, "start"), marker(system, "end")
    ours = machine_run(system, 4, wants(start, 6, 6, STOP), cond.markers_only())
    assert inputs(ours)[:2] == [start, end]
    assert not ours["latent"].any()


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_format_only_never_writes_a_start_marker(system):
    start = marker(system, "start")
    ours = machine_run(system, 4, wants(start, start, start, STOP), cond.format_only())
    assert not (ours["token"] == start).any() and not ours["latent"].any()


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_a_budget_is_the_number_of_latents_fed(system):
    start = marker(system, "start")
    for budget in range(5):
        ours = machine_run(system, 4, wants(start, then=7), cond.budget(budget))
        assert ours["latent"].sum() == budget, budget


def test_target_blocks_of_p_lvr_run_beside_a_context_block():
    """A target marker picked inside a context block does nothing; picked by its last latent it opens the next."""
    context, target = marker("p_lvr", "start"), marker("p_lvr", "start", 1)
    inside = machine_run("p_lvr", 2, wants(context, 6, target, 6, 6, 6, 6, STOP))
    assert inside["latent"].sum() >= 4
    after = machine_run("p_lvr", 2, wants(context, 6, 6, 6, 6, target, 6, 6, 6, STOP))
    assert inputs(after) == [context, "h", "h", "h", "h", target, "h", "h", 6]
    assert after["stage"][0, 2:9].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_systems_differ_in_data_alone():
    """No two records are the same loop under two names, but for the documented twins."""
    besides = {"name": "", "stages": (), "added_tokens": (), "config_ids": (), "budget": 0, "answer": ""}
    described = {name: dataclasses.replace(spec, **besides) for name, spec in SYSTEMS.items()}
    twins = [{a, b} for a in described for b in described if a < b and described[a] == described[b]]
    assert all(pair <= {"lvr", "v_reflection", "p_lvr"} for pair in twins)
    assert TEXT <= min(IDS.values()) and max(IDS.values()) < 60
