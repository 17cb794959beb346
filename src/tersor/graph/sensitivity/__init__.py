"""Which operators of a net suffer most from integers, and how few of them must go back to float."""
