"""Experiments, one per file; `get_config()` of a file returns an ml_collections ConfigDict."""
