"""Image collections: one tfds builder each, opened with `collection` and read in batches with `pipeline`."""
