"""From recordings and text to shards of interleaved token documents, offline."""
