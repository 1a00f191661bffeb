"""The durable layer: bytes, entries, epochs. It never hears of Ray, handlers or user classes."""
