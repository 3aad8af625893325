"""Plans a training step for a topology: memory, speed and duration before machines are rented."""
