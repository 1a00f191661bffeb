"""Examples, each run as `python -m examples.<name>`; the README lists them in learning order, with what each shows."""
