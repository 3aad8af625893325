"""Scores of a checkpoint: held-out loss by class, baselines, word error rates."""
