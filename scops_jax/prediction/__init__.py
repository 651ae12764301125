"""Parts of any images from a finished run."""
