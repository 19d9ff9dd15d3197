"""Weights with NaN or infinity are named, wherever they are read from, and nothing else is."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lvr_jax.checkpoints import CheckpointError, load, open_hf, to_flax
from lvr_jax.checkpoints.finite import finite

HF = Path(__file__).parents[1] / "golden" / "checkpoints" / "tiny_tied_trained_lvr"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_is_named_by_its_place(dtype, value):
    x = np.zeros((3, 700, 1000), dtype)
    x[0, 0, 0], x[2, 1, 3] = ml_dtypes.finfo(dtype).max, -float(ml_dtypes.finfo(dtype).max)
    assert finite(x, "file: name") is x
    x[2, 699, 5] = value
    with pytest.raises(CheckpointError, match=r"file: name holds -?(nan|inf) at \[2, 709, 5\], expected finite"):
        finite(x, "file: name", [0, 10, 0])


def test_arrays_of_any_shape_are_looked_at():
    for shape in ((), (0,), (3, 0), (1,), (2, 1, 1)):
        finite(np.zeros(shape, np.float32), "x")
    with pytest.raises(CheckpointError, match=r"x holds inf at \[\]"):
        finite(np.array(np.inf, np.float32), "x")


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_both_kinds_of_folder_are_refused_by_the_tensors_name(tmp_path, dtype):
    shutil.copytree(HF, tmp_path / "hf")
    tensors = open_hf(tmp_path / "hf").tensors
    name = "model.layers.1.mlp.gate_proj.weight"
    with open(tensors[name].file, "r+b") as file:
        file.seek(tensors[name].offset + 7 * tensors[name].dtype.itemsize)
        file.write(np.array(np.nan, tensors[name].dtype).tobytes())
    to_flax(tmp_path / "hf", tmp_path / "flax")             # a conversion keeps every bit
    with pytest.raises(CheckpointError, match=rf"model.safetensors: \S*{name} holds nan at \[7, 0\], expected finite"):
        load(tmp_path / "hf", dtype=dtype)
    with pytest.raises(CheckpointError, match=r"params: text/blocks/mlp/gate holds nan at \[1, 7, 0\], expected"):
        load(tmp_path / "flax", dtype=dtype)


def test_a_value_that_the_wanted_type_cannot_hold_is_refused(tmp_path):
    shutil.copytree(HF, tmp_path / "hf")
    tensor = open_hf(tmp_path / "hf").tensors["model.norm.weight"]
    assert tensor.dtype == np.float32
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.offset)
        file.write(np.float32(3.4e38).tobytes())
    load(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="holds inf"):
        load(tmp_path / "hf", dtype=jnp.bfloat16)
