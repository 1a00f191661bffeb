"""Random programs of all building blocks, run while everything crashes, and compared with a plain model."""
