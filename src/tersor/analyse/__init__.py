"""How sensitive every matrix of a model is to every format that it could take, and which mix of formats follows."""
