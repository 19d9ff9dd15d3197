"""What a run's result depends on, as one key: what is read of its configs, base and questions, and nothing else.

A page, a comment, a field that training does not read, another study's config: none of them changes a key.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lvr_jax.latents.spec import HEAD_FIELD, PREDICTORS
from lvr_jax.training.config_fields import ConfigFieldError, check_numbers, without_later
from lvr_jax.training.experiment import head_of, objective_of
from study.runs import BASE, Run

# What training reads of an experiment's config besides paths; logs, meshes, profiles and the like leave the result.
READ = (
    "steps", "rows", "accumulate", "mask_boxes", "frozen", "objective", "reconstruction", "own", "alignment",
    "branches", "optimizer", "data", "system", "latent_head",
)  # fmt: skip


def digest(known: object) -> str:
    """A digest of plain values, whatever the order of fields."""
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=list).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Of names and contents of all files below a folder."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def experiment(run: Run, settings: Mapping[str, Any]) -> ConfigDict:
    """The run's config with these settings; paths stay those of the config. ValueError for what no run can have:
    numbers out of range, objectives and latent heads that do not exist (bases have no head of their own)."""
    config = importlib.import_module(f"configs.{run.config}").get_config("tiny")
    with config.ignore_type():
        for name, value in settings.items():
            if not isinstance(value, Path):
                *path, last = name.split(".")
                node = config
                for part in path:
                    node = node[part]
                node[last] = value
    try:
        check_numbers(config)
        objective_of(config, head_of(config, held="none"))
    except ConfigFieldError as error:
        raise ValueError(f"{run.variant}: configs/{run.config}.py: {error}") from None
    if run.at is not None and not 0 < run.at <= config.steps:
        raise ValueError(f"{run.variant}: at is {run.at}, expected a step, 1 to {config.steps}")
    return config


def read_of(config: ConfigDict) -> dict[str, Any]:
    """The part of an experiment's config that its result depends on. A result of before a field came has the key of one
    that leaves the field as it was then. Where a run's latent head is applied when it answers counts, too."""
    found = json.loads(config.to_json_best_effort())
    head = {HEAD_FIELD: PREDICTORS} if config.latent_head else {}
    return without_later({name: found[name] for name in READ}) | head


def axes_of(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What runs may differ by, resolved: whatever words asked for it."""
    c = experiment(run, settings)
    points = c.reconstruction.points
    shares = [source.get("mask_box", False) * source.get("mask_share", 1.0) for source in c.data.sources.values()]
    return {
        "lambda": points[0][1], "until": points[1][0] if len(points) > 1 else None,
        "target": c.objective.target, "route": c.objective.route, "noise": c.objective.noise,
        "attention": c.objective.attention, "feedback": c.objective.feedback, "template": c.data.template,
        "steps": c.steps, "at": run.at or c.steps, "dark": float(max(shares)), "head": c.latent_head or "none",
        BASE: run.base.name,
    }  # fmt: skip
