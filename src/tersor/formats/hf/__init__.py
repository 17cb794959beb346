"""How a quantized matrix lies in the tensors of a Hugging Face checkpoint: arrays in, arrays out, no file."""
