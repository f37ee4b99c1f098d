"""What a number means and how it is taken; outside of the training loop, never changing it."""
