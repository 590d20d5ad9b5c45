"""june: a voice assistant that runs on its owner's own machine."""

__version__ = "0.2.0"
