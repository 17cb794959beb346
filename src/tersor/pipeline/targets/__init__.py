"""What fits on a machine, and what runs fastest there."""
