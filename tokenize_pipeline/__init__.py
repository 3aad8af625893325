"""Turns recordings and text into shards of interleaved token documents, offline."""
