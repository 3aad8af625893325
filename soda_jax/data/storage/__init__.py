"""Where the shards of a data set are read from: a mounted folder, staged copies, or byte ranges."""
