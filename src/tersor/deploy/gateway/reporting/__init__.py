"""What a gateway left behind, as one report: figures beside full precision, decisions, incidents, drift."""
