"""Token data: the shard format, its index, views, windows, mixtures and batches."""
