"""Parallel back-propagation through the layers, with the bits of the ordinary one."""
