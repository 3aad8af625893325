"""Devices: the mesh, the rules that lay arrays on it, and what processes tell each other."""
