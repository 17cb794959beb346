"""What makes a rounded net more like its source: rewrites that keep the function, statistics of inputs, biases."""
