"""The step, acted out: memory, processes, barriers, the loop."""
