"""A family, a way to pre-train and a kind of task that only the tests know."""
