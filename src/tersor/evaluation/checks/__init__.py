"""One module a question about an artefact; each answers with a Check."""
