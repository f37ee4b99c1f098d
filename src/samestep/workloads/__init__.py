"""Complete examples, one file per family."""
