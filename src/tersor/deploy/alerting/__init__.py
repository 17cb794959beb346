"""ALERTS: rules as data, their states over time, and where they are told; the same rules for Prometheus and Grafana."""
