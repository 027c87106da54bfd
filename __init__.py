"""Put a synthetic wrist camera into robot datasets that only have third-person views."""

__version__ = "0.1.0"
