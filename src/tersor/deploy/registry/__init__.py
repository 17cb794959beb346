"""What was registered, judged, overridden and deployed, and when: one SQLite file that is only ever added to."""
