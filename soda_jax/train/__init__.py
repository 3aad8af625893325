"""Training: step, optimizer, schedules, loop, metrics and the hook protocol."""
