"""Numbers that say how good a model is. Knows networks and blocks of tokens, not training."""
