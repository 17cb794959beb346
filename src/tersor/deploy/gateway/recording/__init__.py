"""WATCH a gateway while it serves: figures by minute and day, drift, alerts; kept where a kill does not lose them."""
