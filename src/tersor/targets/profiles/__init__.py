"""Machines as data: what each class of processor, GPU, phone and board can do at most, and who says so."""
