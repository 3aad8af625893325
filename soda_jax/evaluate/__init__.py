"""Scores checkpoints: held-out loss by class, baselines, word error rates."""
