"""Memory that a conversion needs, in units of the checkpoint's largest tensor.

A checkpoint of real 3B shape (random bf16, 7.5 GB, two shards) is made on the spot, converted to Flax/Orbax and back by
tools/convert.py, and compared with itself. Memory is the process's anonymous memory (RssAnon, sampled every 5 ms from
outside) beyond what it has after its imports: pages of mapped files are the system's cache, which it takes back at
will. VmHWM, which counts those pages too, is reported beside it. The ratio is that of the worse direction, against the
largest Hugging Face tensor; stacked over layers, our largest array is 2.6 times as large. The baseline in seconds is a
plain copy of the files.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from lvr_jax.checkpoints.safetensors_io import make_header, parse_header, split_into_shards, write_file
from lvr_jax.models.families import sizes, slots
from lvr_jax.models.interface import Config

GOAL = 3
CHILD = "import sys, convert; print('ready', flush=True); sys.stdin.readline(); sys.exit(convert.main(sys.argv[1:]))"


def run(size: str = "3b", shard_bytes: int = 4 * 10**9) -> dict:
    """Needs free disk space of three times the checkpoint under the temporary folder (TMPDIR)."""
    config = sizes()[size]
    with tempfile.TemporaryDirectory(prefix="bench_convert_") as folder:
        folder = Path(folder)
        total, largest = make_checkpoint(folder / "hf", config, shard_bytes)
        copied = _seconds(lambda: _copy(folder / "hf", folder / "copy"))
        shutil.rmtree(folder / "copy")
        forth = _measure("to-flax", folder / "hf", folder / "flax")
        back = _measure("to-hf", folder / "flax", folder / "again")
        names = sorted(path.name for path in (folder / "hf").iterdir())
        _, differing, failed = filecmp.cmpfiles(folder / "hf", folder / "again", names, shallow=False)
    if differing or failed:
        raise RuntimeError(f"convert: {differing + failed} differ after HF -> Orbax -> HF, expected the same bytes")
    ratio = max(direction["extra_bytes"] for direction in (forth, back)) / largest
    return {
        "name": "convert", "ratio": ratio, "goal": GOAL, "holds": bool(ratio <= GOAL),
        "seconds": forth["seconds"], "baseline_seconds": copied,
        "details": {
            "baseline": "copying the files", "checkpoint_bytes": total, "largest_tensor_bytes": largest,
            "to_flax": forth, "to_hf": back, "files_identical_after_both": names,
        },
    }  # fmt: skip


def make_checkpoint(folder: Path, config: Config, shard_bytes: int) -> tuple[int, int]:
    """Random bf16 weights of a config's shape; returns bytes in all and of the largest tensor. Few numbers are drawn:
    every tensor is a stretch of the same 32 MB from another place."""
    bf16 = np.dtype(ml_dtypes.bfloat16)
    tensors = [(name, bf16, slot.hf_shape) for name, slot in slots(config).items()]
    sizes = [int(np.prod(shape)) * bf16.itemsize for _, _, shape in tensors]
    free, need = shutil.disk_usage(folder.parent).free, 3.1 * sum(sizes)
    if free < need:
        raise RuntimeError(f"convert: {folder.parent} has {free / 1e9:.0f} GB free, expected {need / 1e9:.0f} GB")
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(2**24, np.float32).astype(bf16)

    def pieces(count: int):
        start = int(rng.integers(len(drawn)))
        while count:
            piece = drawn[start : start + count]
            yield piece
            count, start = count - len(piece), 0

    shards = split_into_shards(tensors, shard_bytes)
    for name, shard in shards.items():
        header = make_header(shard)
        held = parse_header(header, folder / name)
        write_file(folder / name, header, (piece for x in held for piece in pieces(x.nbytes // bf16.itemsize)))
    _write_json(folder / "config.json", config.to_hf())
    if len(shards) > 1:
        weight_map = {tensor[0]: name for name, shard in shards.items() for tensor in shard}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return sum(sizes), max(sizes)


def _write_json(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(fields, indent=2))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    os.sync()


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _measure(*command) -> dict:
    """Runs tools/convert.py with this command and watches it."""
    tools = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tools), *sys.path])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    child.stdout.readline()
    start_memory = _memory(child.pid)
    start = time.perf_counter()
    child.stdin.write("\n")
    child.stdin.flush()
    peak = dict(start_memory)
    while child.poll() is None:
        now = _memory(child.pid)
        peak = {key: max(value, now.get(key, 0)) for key, value in peak.items()}
        time.sleep(0.005)
    if child.returncode:
        raise RuntimeError(f"convert: {' '.join(map(str, command))} ended with exit status {child.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "extra_bytes": peak["RssAnon"] - start_memory["RssAnon"],
        "peak_anonymous_bytes": peak["RssAnon"],
        "VmHWM_bytes": peak["VmHWM"],
    }


def _memory(pid: int) -> dict[str, int]:
    """Bytes by field; a process that has just ended has none."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except ProcessLookupError:
        return {}
    return {key: int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "VmHWM") if key in fields}
