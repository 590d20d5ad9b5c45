"""june: a voice assistant that runs on its owner's own machine."""

__version__ = "0.1.0"
