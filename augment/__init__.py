"""The pipeline on one episode (reconstruct, project, generate, assess), its training and evaluation."""
