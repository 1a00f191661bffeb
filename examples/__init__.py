"""Examples: `counter`, then `shopping_cart`, then `seat_map`; each runs as `python -m examples.<name>`."""
