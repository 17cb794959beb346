"""ROLLOUT: what the evidence says about a candidate beside the variant that serves, and what to do about it."""
