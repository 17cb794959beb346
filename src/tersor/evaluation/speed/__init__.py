"""How fast an artefact runs, beside another, and how far from what the machine could do."""
