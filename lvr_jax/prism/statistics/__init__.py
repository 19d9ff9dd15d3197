"""Intervals, paired tests, power and correlations: statistics that know nothing of models or files."""
