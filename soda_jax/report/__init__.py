"""Writes a report about a run as one HTML file with curves, tables, audio and commands."""
