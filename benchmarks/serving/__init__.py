"""What the benchmarks of serving share: artefacts, live gateways on cores of their own, requests."""
