"""Padding, batch mates and packed neighbours are invisible, and one program serves pictures of every size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import distance, double, images_of, network, random_prompt, random_tensors, tiny_config, to_params

from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Images, Tokens

FP64 = Compute(dtype=jnp.float64)
# fp64 sums of up to a hundred terms in another order, through a few layers.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def fp64():
    with jax.enable_x64(True):
        yield


@functools.cache
def tiny():
    config = tiny_config(tied=False)
    return config, double(to_params(config, random_tensors(config, 0)))


@jax.jit
def states_and_gradients(params, images, ids, slot, tokens, readout):
    """States, logits, and gradients of a weighted sum of logits in params and patches."""
    config = tiny()[0]

    def loss(params, patches):
        model = network(config, params)
        merged, _ = model.encode(dataclasses.replace(images, patches=patches), FP64)
        hidden, _, out = model.decode(model.embed(ids, slot, merged), tokens, compute=FP64, taps={"states"})
        return jnp.sum(model.text.logits(hidden) * readout), (out["states"], hidden)

    (_, states), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, images.patches)
    return states, gradients


def readout_of(prompt):
    """What the loss reads from this prompt's logits, wherever it lies."""
    return np.random.default_rng(len(prompt.ids)).standard_normal((len(prompt.ids), tiny()[0].text.vocab))


class Rows:
    """Prompts put into rows of one static shape: [(row, first token, segment)] for each."""

    def __init__(self, prompts, places, rows, T, windows):
        self.prompts, self.places = prompts, places
        config = tiny()[0]
        self.ids, self.slot = np.zeros((rows, T), np.int64), np.full((rows, T), -1)
        self.positions, self.segment = np.ones((rows, 3, T), np.int64), np.zeros((rows, T), np.int32)
        self.readout = np.zeros((rows, T, config.text.vocab))
        shape = (rows, windows, config.vision.slots)
        self.patches = np.zeros((*shape, 2 * config.vision.frame_width))
        self.frames, self.rotary, used = np.zeros(shape, np.int32), np.zeros((*shape, 2), np.int32), [0] * rows
        self.windows = []
        for prompt, (row, at, segment) in zip(prompts, places):
            here, W = slice(at, at + len(prompt.ids)), len(prompt.layout.segments)
            first = used[row]
            merged = first * config.vision.slots // config.vision.merge**2
            self.ids[row, here], self.positions[row, :, here] = prompt.ids, prompt.positions
            self.slot[row, here] = np.where(prompt.vision_slot < 0, -1, prompt.vision_slot + merged)
            self.segment[row, here] = segment
            self.readout[row, here] = readout_of(prompt)
            there = slice(first, first + W)
            self.patches[row, there] = prompt.layout.place(prompt.patches)
            # Frames of another picture of the row need another number.
            frames = prompt.layout.segments
            self.frames[row, there] = np.where(frames > 0, frames + self.frames[row].max(), 0)
            self.rotary[row, there] = prompt.layout.rotary_ids
            self.windows.append((row, there))
            used[row] += W

    def run(self):
        """States of each prompt [L + 2, T, D], pixel gradients of each, and parameter gradients of all."""
        (states, hidden), (d_params, d_patches) = states_and_gradients(
            tiny()[1], Images(self.patches, self.frames, self.rotary), self.ids,
            self.slot, Tokens(self.positions, self.segment), self.readout,
        )  # fmt: skip
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((states, hidden, d_params, d_patches)))
        every = np.concatenate([states, hidden[None]])
        own = [every[:, row, at : at + len(p.ids)] for p, (row, at, _) in zip(self.prompts, self.places)]
        pixels = [np.asarray(d_patches[row, there]) for row, there in self.windows]
        return own, pixels, jax.tree.leaves(d_params)


@functools.cache
def prompts():
    config = tiny()[0]
    media = [("image", (1, 6, 10))], [("video", (2, 4, 4)), ("image", (1, 2, 6))], [("image", (1, 4, 4))]
    return [random_prompt(config, list(m), seed, text=6) for seed, m in enumerate(media)]


@functools.cache
def alone():
    """Each prompt by itself in a program of its own length: no padding anywhere."""
    return [Rows([p], [(0, 0, 1)], 1, len(p.ids), len(p.layout.segments)).run() for p in prompts()]


def lengths():
    return [len(p.ids) for p in prompts()]


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["left", "right", "both"])
def test_padding_is_invisible(padding):
    T = max(lengths()) + 5
    for i, prompt in enumerate(prompts()[:2]):
        at = {"left": T - len(prompt.ids), "right": 0, "both": 3}[padding]
        own, pixels, weights = Rows([prompt], [(0, at, 1)], 1, T, 7).run()
        expected_own, expected_pixels, expected_weights = alone()[i]
        assert distance(own[0], expected_own[0]) <= EXACT
        assert distance(pixels[0], expected_pixels[0]) <= EXACT
        assert max(distance(a, b) for a, b in zip(weights, expected_weights)) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["batched", "packed", "packed and batched"])
def test_neighbours_are_invisible(packing):
    """Gradients of a batch are the sum of those of its examples."""
    a, b, c = lengths()
    places, rows, T, windows = {
        "batched": ([(0, 2, 1), (1, 0, 1), (2, max(a, b) - c, 1)], 3, max(a, b) + 4, 6),
        "packed": ([(0, 0, 1), (0, a, 2), (0, a + b + 1, 3)], 1, a + b + c + 3, 12),
        "packed and batched": ([(0, 1, 5), (1, 3, 4), (0, a + 1, 2)], 2, a + b + c + 4, 9),
    }[packing]
    own, pixels, weights = Rows(prompts(), places, rows, T, windows).run()
    for i in range(3):
        assert distance(own[i], alone()[i][0][0]) <= EXACT
        assert distance(pixels[i], alone()[i][1][0]) <= EXACT
    for k, gradient in enumerate(weights):
        assert distance(gradient, sum(np.asarray(alone()[i][2][k]) for i in range(3))) <= EXACT


def test_images_of_many_sizes_within_one_budget_compile_once():
    config, params = tiny()
    traced = []

    @jax.jit
    def run(params, images, ids, slot, tokens):
        traced.append(ids.shape)
        model = network(config, params)
        return model.decode(model.embed(ids, slot, model.encode(images, FP64)[0]), tokens, compute=FP64)[0]

    T, seen = 48, []
    for seed, grid in enumerate([(1, 2, 2), (1, 6, 10), (1, 10, 6), (2, 4, 6), (1, 4, 16), (1, 8, 8)]):
        prompt = random_prompt(config, [("image", grid)], seed, windows=6)
        pad = T - len(prompt.ids)
        tokens = Tokens(
            jnp.array(np.pad(prompt.positions, [(0, 0), (0, pad)]))[None],
            jnp.array(np.pad(np.ones(len(prompt.ids), np.int32), (0, pad)))[None],
        )
        slot = np.pad(prompt.vision_slot, (0, pad), constant_values=-1)
        out = run(params, images_of([prompt]), np.pad(prompt.ids, (0, pad))[None], slot[None], tokens)
        seen.append(np.asarray(out[0, len(prompt.ids) - 1]))
    assert len(traced) == 1
    assert len({x.tobytes() for x in seen}) == 6
