"""What operators do: say what serves, replace it while it serves, and leave a trace of each change."""
