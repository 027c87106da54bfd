"""Episode + wrist stream -> a copy of the dataset in its own format."""
