"""A run from end to end: what a person brings, the configuration, training, state, progress."""
