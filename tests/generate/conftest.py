"""A tiny random decoder with a byte tokenizer and a trivial codec."""

from toy_speech_model import engine, functions, layout, model, params

__all__ = ["engine", "functions", "layout", "model", "params"]
