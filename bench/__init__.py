"""Load harness of shieldx: its generator, the peers it compares with, and the report."""
