"""Sweeps: one config with many overrides, their commands on each launcher, their table."""
