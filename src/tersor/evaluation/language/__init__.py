"""How close a language model is to its original: perplexity, divergence, choices; streamed, with intervals."""
