"""Ahead-of-time compilation for TPUs that are not here: slices, programs, what a compiled program takes."""
