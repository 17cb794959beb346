"""What runs inside the child process that holds torch."""
