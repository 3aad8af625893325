"""Checkpoints to and from the Hugging Face format of Qwen3, a slice at a time."""
