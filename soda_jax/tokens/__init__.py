"""Defines the vocabulary of text and audio, the grammar of documents, and text tokenizers."""

from soda_jax.tokens.documents import Parsed, Utterance, View, parse, render
from soda_jax.tokens.vocabulary import VocabularyLayout

__all__ = ["Parsed", "Utterance", "View", "VocabularyLayout", "parse", "render"]
