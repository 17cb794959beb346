"""Write what was decided into a graph: quantizers, stored integers, tables."""
