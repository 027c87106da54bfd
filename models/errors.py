"""What goes wrong with weights. Imports no torch, so that the command line can catch it quickly."""


class WeightsError(ValueError):
    """A weights file that is missing, damaged or of another network; the text says what to do."""
