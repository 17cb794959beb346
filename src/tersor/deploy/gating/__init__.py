"""Whether an artefact may serve: a record of checks, and the check that serves it as a gateway would."""
