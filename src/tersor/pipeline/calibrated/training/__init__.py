"""Training on the grid, for language models: block by block, then end to end, taught by the full-precision model."""
