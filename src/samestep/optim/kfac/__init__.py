"""The subspace K-FAC: an optimiser that chooses its own step, over all workers."""
