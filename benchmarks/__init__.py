"""Benchmarks: `python -m benchmarks.train`, `.sample`, `.loss`, `.categorical`, `.length`.

Each runs from the repository's root and prints one JSON line on stdout. `benchmarks.pytorch` is the
original in PyTorch, for paired timings on one machine.
"""
