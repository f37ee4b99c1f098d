"""Stages: a network's consecutive operations, one part on each rank, with the bits of the whole on one."""
