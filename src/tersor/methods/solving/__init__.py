"""What the methods share: grids of whole matrices, factored Hessians, searches, and refinement."""
