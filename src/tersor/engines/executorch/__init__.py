"""ExecuTorch: programs for phones, made by its compiler and run by its runtime, each in a child process."""
