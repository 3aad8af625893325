"""`soda doctor`: checks a machine or a pod before a run."""
