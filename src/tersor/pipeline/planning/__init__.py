"""From a model and a goal to a plan: how sensitive each tensor is, and which mix of formats follows."""
