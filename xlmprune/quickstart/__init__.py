"""The embedded default: real weights and real sentences from Python packages, so a first run needs no hub."""
