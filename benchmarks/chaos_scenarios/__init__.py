"""What `benchmarks/chaos.py` does to jobs; a module a kind of harm, a function a scenario."""
