"""Experiments, canaries, flags, and rules that are evaluated in shadow."""
