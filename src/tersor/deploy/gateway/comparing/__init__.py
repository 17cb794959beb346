"""COMPARING: answers beside those of full precision, behind the answers, in so much of the time as is allowed."""
