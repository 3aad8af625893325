"""What a training step needs of the machines it will run on, before they are rented."""
