"""Checkpoints in and out: the decoder's parameters as Hugging Face stores them, and back."""
