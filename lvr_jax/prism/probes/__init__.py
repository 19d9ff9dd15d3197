"""Probes: where, and how easily, an answer can be read from recorded states."""
