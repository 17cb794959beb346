"""The graph as a torch module that can be trained, with the roundings of its engine in it, and back again."""
