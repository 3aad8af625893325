"""Checks of a data set: verification of the stored files and the contamination report."""
