"""Benchmarks: `python -m benchmarks.train`, `.sample`, `.loss`, `.categorical`, `.length`.

Each is run from the repository's root and prints one JSON line on stdout. `benchmarks.pytorch` is a
PyTorch baseline of the original, for paired timings on one machine.
"""
