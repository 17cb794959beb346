"""A quantized artefact beside full precision, tensor by tensor and activation by activation."""
