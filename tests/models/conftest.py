"""Loads the libraries by the door that makes them loadable, before any test names them."""

import wristaugment.models.libraries  # noqa: F401
