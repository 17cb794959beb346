"""What people see: tables, progress bars, one JSON document."""
