"""ROLLING: a candidate beside the variant that serves, its share of requests, its shadow, and its steps."""
