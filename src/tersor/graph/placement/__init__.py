"""Where a net is rounded: the table of engines, and the tensors and operators of a net that become integers."""
