"""Predicts memory, speed and duration of a run, also for topologies that are not available."""
