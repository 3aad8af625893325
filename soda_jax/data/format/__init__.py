"""The shard format: records, shards, the index and the manifest of a data set."""
