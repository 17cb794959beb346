"""Steps that several verbs take: planning, provenance, stages side by side, Cards, lossless conversion."""
