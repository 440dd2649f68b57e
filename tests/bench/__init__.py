"""Benchmarks: a peer and this engine side by side in one run, and the ratios between them."""
