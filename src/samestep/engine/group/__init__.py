"""Ranks on several machines: the same step, and what is written travels between them (torch.distributed, Gloo)."""
