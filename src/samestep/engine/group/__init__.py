"""Ranks without shared memory: the same step, and what is written travels (torch.distributed, Gloo)."""
