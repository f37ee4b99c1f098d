"""Decisions, as pure functions of integers: batches, order, tree, layout. Imports no torch."""
