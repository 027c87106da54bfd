"""A simulated Franka Panda seen by side cameras and a hand camera (needs the `sim` extra)."""

VIEWS, MOST_VIEWS = 2, 3  # side cameras that see an episode: usually, and at most
