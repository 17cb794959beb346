"""An honest load generator: requests leave when the schedule says so, whatever became of those before."""
