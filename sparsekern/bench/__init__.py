"""Baselines and timing behind the benchmarks."""
