"""What the gateway answers to: one table, which the routes are made from and described by."""
