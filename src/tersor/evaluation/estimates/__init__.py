"""What a language model needs and can reach at most on a machine, from shapes and roofs; nothing is run."""
