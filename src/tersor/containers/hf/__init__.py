"""Quantized Hugging Face checkpoints, as transformers and vLLM load them: gptq, awq, compressed-tensors."""
