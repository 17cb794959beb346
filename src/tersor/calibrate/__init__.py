"""CALIBRATE: text → tokens → what every weight matrix sees, one block of the model in memory at a time."""
