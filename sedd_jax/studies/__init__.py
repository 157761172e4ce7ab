"""Comparisons of whole models: their samples before a judge, frontiers, infilling."""
