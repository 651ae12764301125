"""A collection of one's own images in a folder."""
