"""Parts of a network cover it once, and a transplant takes over exactly the donor's values of one part."""

import jax
import numpy as np
import pytest

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.models import families
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.prism.network_parts import EVERYTHING, KINDS, NOTHING, Part, equal, kind_of, parts, transplanted

CONFIG = Config(
    vision=VisionConfig(depth=1, hidden=8, intermediate=8, heads=1, out_hidden=16, full_attention_layers=(0,),
                        window_pixels=112, patch=14),
    text=TextConfig(vocab=32, hidden=16, intermediate=8, layers=3, heads=2, kv_heads=1, head_width=8,
                    mrope_section=(1, 1, 2), tied=False),
    image_token_id=3, video_token_id=4, vision_start_token_id=5, latent_head="glu", latent_end_embedding=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    """Two checkpoints that share no value, in any parameter."""
    _, shapes = families.abstract_model(CONFIG)
    host = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), shapes)
    return jax.device_put((host, jax.tree.map(np.ones_like, host)))


def taken(pair, part) -> dict[str, float]:
    """The share of every parameter that is the donor's."""
    return {path: float(np.mean(np.asarray(x))) for path, x in flat(transplanted(*pair, part)).items()}


def test_everything_is_the_donor_and_nothing_is_the_host_bit_for_bit(pair):
    assert set(taken(pair, EVERYTHING).values()) == {1.0} and set(taken(pair, NOTHING).values()) == {0.0}
    host = transplanted(*pair, NOTHING)
    assert all(a is b for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(pair[0]))), "not even copied"


def test_kinds_take_every_parameter_once(pair):
    by_kind = [taken(pair, Part(kind, (kind,))) for kind in KINDS]
    assert all(sum(found[path] for found in by_kind) == 1.0 for path in by_kind[0])
    assert all(any(found.values()) for found in by_kind), "no kind is empty in a network that has them all"


def test_blocks_take_every_layer_once_and_nothing_outside_of_them(pair):
    by_block = [taken(pair, part) for part in parts(3) if part.layers is not None]
    assert len(by_block) == 3
    for path in by_block[0]:
        found = [each[path] for each in by_block]
        assert found == pytest.approx([1 / 3] * 3 if path.startswith("text/blocks/") else [0.0] * 3), path


def test_a_block_takes_that_layer_alone(pair):
    mixed = transplanted(*pair, Part("attention of block 1", ("attention",), (1,)))
    q, gate = mixed["text"]["blocks"]["q"], mixed["text"]["blocks"]["mlp"]["gate"]
    np.testing.assert_array_equal(np.asarray(q).reshape(3, -1).mean(1), [0, 1, 0])
    assert not np.asarray(gate).any()


def test_deep_networks_are_cut_into_runs_of_neighbours():
    names = [part.name for part in parts(28) if part.layers is not None]
    assert names == ["blocks 0-6", "blocks 7-13", "blocks 14-20", "blocks 21-27"]


def test_parts_are_equal_only_where_every_value_is(pair):
    host, _ = pair
    other = jax.tree.map(np.array, host)
    other["text"]["blocks"]["q"] = host["text"]["blocks"]["q"].at[2, 0, 0, 0].set(1e-30)
    same = {part.name for part in parts(3) if equal(host, other, part)}
    assert same == {part.name for part in parts(3)} - {"attention", "block 2"}


@pytest.mark.parametrize("config", families.sizes().values(), ids=families.sizes().keys())
def test_every_parameter_of_a_published_network_is_of_a_kind(config):
    assert {kind_of(path) for path in families.shapes(config)} <= set(KINDS)
    with pytest.raises(ValueError, match="'text/blocks/gates' is of no known kind"):
        kind_of("text/blocks/gates")
