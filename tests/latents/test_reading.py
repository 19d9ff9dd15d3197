"""What was read once serves other batches: rows are gathered, none is read again, and results are the same."""

import jax.numpy as jnp
import numpy as np
import pytest
import sweep_programs as programs
from test_sweep import equal

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.reading import Held
from lvr_jax.latents.rollout import Prefix
from lvr_jax.latents.sweep_files import read
from lvr_jax.models.records import Cache

L, K, H, D = 2, 1, 3, 4


def batch(rows: int, tokens: int, slots: int, seed: int):
    """A made-up prefix, every number of it drawn, and merged tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    whole = lambda *shape: jnp.asarray(rng.integers(1, 9, shape), jnp.int32)  # noqa: E731
    cache = Cache(draw(L, rows, tokens, K, H), draw(L, rows, tokens, K, H), whole(rows, tokens), whole(rows, tokens))
    return (Prefix(cache, draw(rows, D), whole(rows), whole(rows), whole(rows), whole(rows), None,
                   jnp.eye(2, dtype=bool)), draw(rows, slots, D))  # fmt: skip


def test_rows_come_from_the_batches_that_hold_them_and_shorter_ones_are_padded_with_unused_places():
    held = Held(1e9)
    (one, merged_one), (two, merged_two) = batch(3, 5, 4, 0), batch(2, 7, 6, 1)
    held.keep(("a", "b", "c"), one, merged_one)
    held.keep(("d", "e"), two, merged_two)
    prefix, merged = held.read(("e", "b"), 3)                            # filled up with e
    assert prefix.cache.k.shape == (L, 3, 7, K, H) and merged.shape == (3, 6, D)
    for row in (0, 2):
        np.testing.assert_array_equal(prefix.cache.k[:, row], two.cache.k[:, 1])
        np.testing.assert_array_equal(prefix.hidden[row], two.hidden[1])
        np.testing.assert_array_equal(merged[row], merged_two[1])
    for name in ("k", "v"):
        np.testing.assert_array_equal(getattr(prefix.cache, name)[:, 1, :5], getattr(one.cache, name)[:, 1])
    for name in ("segment", "role"):
        mine, theirs = getattr(prefix.cache, name), getattr(one.cache, name)
        np.testing.assert_array_equal(mine[1, :5], theirs[1])
    assert not prefix.cache.segment[1, 5:].any(), "padding is of no segment, so that nobody sees it"
    for name in ("token", "next_position", "segment", "item"):
        assert getattr(prefix, name)[1] == getattr(one, name)[1]
    np.testing.assert_array_equal(prefix.blocked, one.blocked)
    np.testing.assert_array_equal(held.merged(("e", "b"), 3), merged)
    assert held.read(("a", "b", "c"), 3)[0] is one, "a batch that is held as it is asked for is not copied"


def test_what_does_not_fit_is_not_held_and_rows_that_are_missing_are_not_made_up():
    prefix, merged = batch(2, 5, 4, 0)
    size = sum(x.nbytes for x in (*vars(prefix.cache).values(), merged)) + 2 * 4 * (D + 4) + 4
    held = Held(size)
    held.keep(("a", "b"), prefix, merged)
    held.keep(("c", "d"), *batch(2, 5, 4, 1))
    assert list(held.batches) == [("a", "b")] and held.size == pytest.approx(size)
    assert held.read(("a", "c"), 2) is None and held.merged(("c",), 2) is None
    assert Held().read(("a",), 1) is None


@pytest.mark.slow
def test_a_sweep_in_other_batches_reads_nothing_that_is_held(tmp_path):
    conditions = [cond.zero(), cond.replaced("donor"), cond.replaced("oracle")]
    loaded, held = [], Held(1e9)
    sweeper = programs.sweeper_of()
    first = [programs.prompts(n, on_load=loaded.append) for n in (range(3), range(3, 6), range(6, 8))]
    programs.run(sweeper, first, conditions, tmp_path / "first", held)
    assert len(loaded) == 3, "both phases, and the oracle, by one reading of each batch"
    others = [[6, 1, 3], [5, 0]]
    second = [programs.prompts(n, on_load=loaded.append) for n in others]
    programs.run(sweeper, second, conditions, tmp_path / "held", held)
    assert len(loaded) == 3
    programs.sweep_into(tmp_path / "alone", batches=others, conditions=conditions)
    equal(read(tmp_path / "held"), read(tmp_path / "alone"))
