"""What recording and auditing cost, as ratios within one run. ``python -m benchmarks --help``."""
