"""Benchmarks: contests of solvers in ``solvers``, races of trainings in ``training``."""
