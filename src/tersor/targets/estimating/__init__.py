"""What a net would take on a machine that is not at hand, in time, memory and energy: always an interval."""
