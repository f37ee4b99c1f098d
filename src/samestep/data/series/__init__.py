"""Time series: rows in the order of time, of which stretches are learned."""
