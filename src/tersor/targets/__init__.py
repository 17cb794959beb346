"""Facts about machines: processor, memory, energy, and what they can do at most."""
