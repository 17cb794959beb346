"""ROLLING: a candidate beside the variant that serves: its share of requests, its shadow, and the steps of its rollout."""
