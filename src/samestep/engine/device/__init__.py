"""What a rank computes on: the seam between the step and torch's devices; nobody else asks `torch.cuda`."""
