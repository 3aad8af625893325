"""Devices and processes: the mesh, the sharding rules, and communication between processes."""
