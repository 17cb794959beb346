"""Causal language models of Hugging Face form inside an engine's process: what full precision says, without a GGUF."""
