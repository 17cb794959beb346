"""Files that engines load: GGUF writing, and the table of llama.cpp file types."""
