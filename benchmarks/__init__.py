"""Comparisons behind the decisions, each one command: ``python -m benchmarks.<name>``."""
