"""llama.cpp from the inside of its child process: standard library only."""
