"""Examples, each run as `python -m examples.<name>`; README.md beside it lists them in learning order."""
