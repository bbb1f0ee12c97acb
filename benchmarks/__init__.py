"""Throughput and scaling, run as ``python -m benchmarks``."""
