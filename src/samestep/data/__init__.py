"""Where samples come from, and how microbatches of them become tensors."""
