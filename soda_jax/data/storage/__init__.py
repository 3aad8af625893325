"""Reads the shards of a data set from a mounted folder, from staged copies, or by byte range."""
