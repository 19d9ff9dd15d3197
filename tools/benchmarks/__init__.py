"""The benchmarks of tools/bench.py, one file each with a function run()."""
