"""Where the shards of a data set lie: mounted, staged to local disk, or read by byte range."""
