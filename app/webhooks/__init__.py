"""Signed messages to addresses that customers choose."""
