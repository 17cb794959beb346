"""The vocabulary of nets with activations."""
