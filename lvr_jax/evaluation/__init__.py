"""Benchmarks as the published harnesses score them: prompts, extraction, scores, protocols and the runner."""
