"""The vocabulary: values and errors that every stage speaks. Imports nothing of ours."""
