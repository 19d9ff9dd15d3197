"""Latent reasoning over any network: systems, conditions, rollout, sweep and training objectives."""
