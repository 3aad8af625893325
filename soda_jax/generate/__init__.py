"""Generates speech and text, constrained by the grammar; see `speech_model.load`."""
