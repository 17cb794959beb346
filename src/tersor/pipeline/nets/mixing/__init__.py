"""A format of its own for each operator of a net, by what it was measured to cost."""
