"""Changes of known rank and size are measured as such, matrix by matrix."""

import jax
import numpy as np
import pytest

from lvr_jax.models import families
from lvr_jax.prism.measure.weight_change import by_kind, change, spectra

RNG = np.random.default_rng(0)


def orthogonal(rows, columns):
    return np.linalg.qr(RNG.standard_normal((rows, columns)))[0]


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_equal_directions_are_counted(shape, rank):
    """k equal singular values: effective rank k, first share 1/k. Tolerance: fp64 eigenvalues of a Gram matrix."""
    before = RNG.standard_normal(shape)
    moved = orthogonal(shape[0], rank) @ orthogonal(shape[1], rank).T
    found = change(before, before + 0.5 * moved)
    assert found["rank"] == pytest.approx(rank, rel=1e-4) and found["top"] == pytest.approx(1 / rank, rel=1e-6)
    assert found["moved"] == pytest.approx(0.5 * rank**0.5)
    assert found["relative"] == pytest.approx(0.5 * rank**0.5 / np.linalg.norm(before))


def test_nothing_changed_has_size_zero_and_no_rank():
    x = RNG.standard_normal((5, 4))
    assert change(x, x) == {"norm": np.linalg.norm(x), "moved": 0.0, "relative": 0.0, "rank": None, "top": None}
    assert change(0 * x, x)["relative"] is None, "nothing to compare with"
    assert change(x[:1], 2 * x[:1])["rank"] is None, "a vector has one direction only"


def test_one_layer_of_one_matrix_is_found_and_nothing_else():
    config = tiny()
    before = jax.tree.map(np.asarray, families.random_params(config, 0))
    after = jax.tree.map(np.copy, before)
    after["text"]["blocks"]["mlp"]["up"][1] *= 1.25
    rows = spectra(before, after, config)
    assert len(rows) == len(families.slots(config)), "every tensor of the checkpoint has one"
    changed = [row for row in rows if row["moved"]]
    assert [(row["parameter"], row["layer"], row["kind"]) for row in changed] == [("text/blocks/mlp/up", 1, "mlp")]
    assert changed[0]["relative"] == pytest.approx(0.25, rel=1e-6)
    kinds = by_kind(rows)
    size = np.sqrt(sum(row["norm"] ** 2 for row in rows if row["kind"] == "mlp"))
    assert kinds["mlp"]["relative"] == pytest.approx(changed[0]["moved"] / size)
    assert kinds["attention"]["relative"] == 0 and kinds["mlp"]["rank"] == changed[0]["rank"]


def tiny():
    return families.read_config({
        "model_type": "qwen2_5_vl", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "rms_norm_eps": 1e-6, "rope_theta": 100.0, "tie_word_embeddings": True, "image_token_id": 3,
        "video_token_id": 4, "vision_start_token_id": 5, "vision_config": {
            "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 16,
            "fullatt_block_indexes": [0], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "in_channels": 3, "tokens_per_second": 2,
        },
    })  # fmt: skip
