"""Arrow-style zero-copy datasets and the .nano file format."""
