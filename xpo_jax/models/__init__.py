"""Language models as pure functions: decoder, heads, checkpoints, sampling, score."""
