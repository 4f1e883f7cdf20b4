"""Benchmarks are tried with one tiny model and data set."""

from tiny_run import ground

__all__ = ["ground"]
