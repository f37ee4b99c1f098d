"""Text: a sequence of symbols, of which windows are learned."""
