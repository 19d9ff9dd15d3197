"""A sweep on four devices, items over two and weights over two, equals that of one. Also the program they run."""

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import quick
from forked import Process

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import sweep as sweeps
from lvr_jax.multihost.cell import Cell
from lvr_jax.prism import experiment

ROOT = Path(__file__).parents[2]
NAME = "tiny_tied_trained_lvr"


def config_of(**mesh):
    found = importlib.util.spec_from_file_location("prism_config", ROOT / "configs" / "prism.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    c = module.get_config()
    c.benchmark, c.options, c.switches = "digit_search", "size=4, options=2", "max_new_tokens=6"
    c.rows, c.budget, c.force_latents = 4, 2, True
    c.mesh.update(mesh)
    return c


def main(folder: Path) -> None:
    checkpoint = folder / NAME
    shutil.copytree(ROOT / "tests/golden/checkpoints" / NAME, checkpoint)
    shutil.copy(ROOT / "tests/golden/tokenizer.json", checkpoint)
    (checkpoint / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 12544}')
    c = config_of(data=2, tensor=2)
    audit = experiment.prepare(c, experiment.settings_of(c), str(checkpoint), NAME, folder, False, print)
    weights = audit.items.subject.params["text"]["blocks"]["q"]
    held = weights.addressable_shards[0].data.size / weights.size
    four, one = folder / "four", folder / "one"
    sweeper, conditions = audit._sweeper("corruption"), [cond.zero(), cond.absolute_noise(0.3)]
    with audit.cell.active():
        sweeps.run(sweeper, audit.items.prompts(), conditions, four)
    alone = dataclasses.replace(sweeper, cell=Cell(), params=jax.tree.map(np.asarray, sweeper.params))
    sweeps.run(alone, audit.items.prompts(), conditions, one)
    a, b = sweeps.read(four).arrays, sweeps.read(one).arrays
    margin = np.abs(a["margin@answer"] - b["margin@answer"])
    print(json.dumps({
        "held": held, "tokens": bool(np.array_equal(a["token"], b["token"])), "latents": int(b["latent"].sum()),
        "answered": int(np.isfinite(margin).sum()), "margin": float(np.nanmax(margin)),
    }))  # fmt: skip


@pytest.mark.slow
def test_a_sweep_on_four_devices_finds_what_one_finds(tmp_path):
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": quick.flags(4, [quick.LEVEL]),
    }  # fmt: skip
    run = Process([__file__, tmp_path], environment)
    out, error = run.communicate(timeout=900)
    assert run.returncode == 0, error
    found = json.loads(out.splitlines()[-1])
    assert found["held"] == 0.5, "a device holds half of the heads"
    assert found["tokens"] and found["latents"] >= 8 and found["answered"] >= 6
    assert found["margin"] <= 2e-4, "fp32 sums over heads and inner widths in two parts"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
