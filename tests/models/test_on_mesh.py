"""Attention and loss are the same on eight devices as on one. The file is also the program that eight devices run."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from forked import Process
from networks import distance

from lvr_jax.models import attention as door
from lvr_jax.models.attention import Keys, Queries
from lvr_jax.models.cross_entropy import weighted_cross_entropy
from lvr_jax.training.partitioning import make_mesh

ROOT = Path(__file__).parents[2]
# fp32 sums of a few hundred terms in another order.
FP32 = 1e-5
# Data, fsdp, tensor; the last has more devices than there are key/value heads.
MESHES = {"heads cut": (2, 2, 2), "one head for several devices": (1, 2, 4), "rows that do not divide": (8, 1, 1)}


def splash(queries: Queries, keys: Keys):
    return door._splash(queries, keys, interpret=True)


def attention_gradients(function, queries: Queries, keys: Keys):
    def scalar(q, k, v):
        out = function(dataclasses.replace(queries, q=q), dataclasses.replace(keys, k=k, v=v))
        return jnp.sum(out * jax.random.normal(jax.random.key(0), out.shape))

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2)))(queries.q, keys.k, keys.v)


def attention_error(shape) -> float:
    """Splash on the mesh (its kernel interpreted) against XLA on one device: packed rows, grouped queries."""
    rng = np.random.default_rng(0)
    B, T, N, K, H = 4, 128, 4, 2, 16
    draw = lambda n: jnp.array(rng.standard_normal((B, T, n, H)), jnp.float32)  # noqa: E731
    segment = jnp.array(np.sort(rng.integers(0, 3, (B, T)), axis=1)[:, ::-1].copy(), jnp.int32)
    queries, keys = Queries(draw(N), segment), Keys(draw(K), draw(K), segment, causal=True)
    expected = attention_gradients(lambda q, k: door.attention(q, k)[0], queries, keys)
    with jax.set_mesh(make_mesh(dict(zip(("data", "fsdp", "tensor"), shape)))):
        ours = attention_gradients(splash, queries, keys)
    return max(distance(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)))


def branches_error(shape) -> float:
    """Blocks and XLA on the mesh, rows of three branches with padding, against XLA on one device."""
    rng = np.random.default_rng(2)
    B, T, N, K, H = 4, 128, 4, 2, 16
    draw = lambda n: jnp.array(rng.standard_normal((B, T, n, H)), jnp.float32)  # noqa: E731
    segment = jnp.array(rng.random((B, T)) < 0.9, jnp.int32)
    queries, keys = Queries(draw(N), segment), Keys(draw(K), draw(K), segment, causal=True, branches=(32, 3))
    expected = attention_gradients(lambda q, k: door.attention(q, k)[0], queries, keys)
    with jax.set_mesh(make_mesh(dict(zip(("data", "fsdp", "tensor"), shape)))):
        ours = [
            attention_gradients(lambda q, k, name=name: door.attention(q, k, implementation=name)[0], queries, keys)
            for name in ("xla", "blocks")
        ]
    return max(distance(a, b) for each in ours for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(expected)))


def loss_error(shape) -> float:
    rng = np.random.default_rng(1)
    B, T, D, V = 4, 11, 16, 40
    hidden = jnp.array(rng.standard_normal((B, T, D)), jnp.float32)
    unembedding = jnp.array(rng.standard_normal((V, D)), jnp.float32)
    labels, weights = jnp.array(rng.integers(0, V, (B, T))), jnp.array(rng.random((B, T)), jnp.float32)

    def run():
        loss = lambda h, u: weighted_cross_entropy(h, u, labels, weights, 4)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
            hidden, unembedding
        )

    expected = run()
    with jax.set_mesh(make_mesh(dict(zip(("data", "fsdp", "tensor"), shape)))):
        ours = run()
    return max(distance(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)))


def main() -> None:
    found = {name: [attention_error(shape), branches_error(shape), loss_error(shape)] for name, shape in MESHES.items()}
    # Two slices of four, told apart by their devices' numbers.
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, slice_of=lambda device: device.id % 2)
    slices = [sorted({device.id % 2 for device in part.flat}) for part in mesh.devices]
    print(json.dumps({"devices": jax.device_count(), "errors": found, "slices": slices}))


@pytest.fixture(scope="module")
def eight_devices() -> dict:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.flags(8),
                   "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"}  # fmt: skip
    run = Process([__file__], environment)
    out, error = run.communicate(timeout=900)
    assert run.returncode == 0, error
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_attention_and_loss_on_eight_devices_equal_one(eight_devices, name):
    """Values and gradients."""
    assert eight_devices["devices"] == 8
    assert max(eight_devices["errors"][name]) <= FP32


@pytest.mark.slow
def test_slices_are_told_apart_by_the_data_axis_alone(eight_devices):
    assert eight_devices["slices"] == [[0], [1]]


if __name__ == "__main__":
    main()
