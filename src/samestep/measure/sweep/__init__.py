"""Steps to a target against the batch, with tuned settings for every optimiser and batch."""
