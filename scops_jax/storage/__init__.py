"""Files on disk and in buckets that are complete or absent, and locks."""
