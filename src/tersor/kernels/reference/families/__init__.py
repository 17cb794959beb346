"""One family of formats a module: fit, round, pack and unpack, as defined."""
