"""Plans IsoFLOP studies and fits scaling laws to their results."""
