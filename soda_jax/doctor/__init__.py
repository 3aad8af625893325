"""`soda doctor`: what to know of a machine or a pod before a run."""
