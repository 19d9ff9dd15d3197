"""Training runs: experiment, state, sharding, step, loop, checkpoints and export."""
