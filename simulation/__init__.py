"""A simulated Franka Panda seen by two side cameras and a hand camera (needs the `sim` extra)."""
