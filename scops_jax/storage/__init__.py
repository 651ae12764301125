"""Files on disk that are whole or absent."""
