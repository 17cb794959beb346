"""The steps of `tersor evaluate` for language models: opening both sides, running text or questions through them."""
