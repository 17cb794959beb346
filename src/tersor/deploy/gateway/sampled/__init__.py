"""SAMPLE requests that were answered: what a look at a few of them tells, behind the answers and never before them."""
