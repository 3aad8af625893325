"""Converts checkpoints to and from the Hugging Face format of Qwen3, one slice at a time."""
