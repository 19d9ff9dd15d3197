"""Control: from teacher forcing to own latents, position by position, in a straight line over the run.

Scheduled sampling of latents. Cost: as `rollout.py`.

    python tools/train.py --config configs/scheduled.py:3b --workdir runs/scheduled
    python tools/train.py --config configs/scheduled.py:tiny --workdir runs/scheduled_tiny
"""

from ml_collections import ConfigDict

from configs import rollout


def get_config(size: str = "3b") -> ConfigDict:
    c = rollout.get_config(size)
    c.name = "scheduled"
    c.objective.feedback = "scheduled"
    c.own.points = ((0.0, 0.0), (1.0, 1.0))
    return c
