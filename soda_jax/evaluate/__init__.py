"""Scores checkpoints by held-out loss per class, baselines and word error rates."""
