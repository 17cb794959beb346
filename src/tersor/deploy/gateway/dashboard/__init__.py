"""The page at `/`: what serves, how it fares, what operators did, and what they can have done."""
