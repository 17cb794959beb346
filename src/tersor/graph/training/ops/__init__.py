"""What every operator of ONNX computes, in torch; `table` says which function is which operator.

Positional parameters are the inputs of the operator, keyword-only ones its attributes under their ONNX names, with the
defaults of the standard. Three of the latter are facts of the graph: `training` (the mode of the module), `outputs`
(how many the node has) and `element` (lowest and highest integer, and type, of what a node quantizes to).
"""
