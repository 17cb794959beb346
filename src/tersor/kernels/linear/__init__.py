"""Linear layers on integer weights: packed once, multiplied by activations that are rounded as they come."""
