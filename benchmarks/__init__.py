"""Time cbn beside its peers: ``python -m benchmarks --help``."""
