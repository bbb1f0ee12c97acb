"""The paper's experiments, run as ``python -m experiments.NAME``."""
