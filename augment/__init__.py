"""The pipeline on one episode (reconstruct, project, generate), its training and evaluation."""
