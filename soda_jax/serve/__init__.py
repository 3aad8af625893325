"""A local web page and JSON API to try a model: `soda serve`."""
