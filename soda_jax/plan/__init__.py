"""Predicts memory, speed and duration of a run on a topology that need not be available."""
