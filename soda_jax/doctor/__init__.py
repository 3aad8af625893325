"""`soda doctor`: checks of a machine or a pod before a run."""
