"""ROLLING: a candidate beside the variant that serves, its share of requests, and its steps."""
