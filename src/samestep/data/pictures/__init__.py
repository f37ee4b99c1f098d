"""Pictures in files: found with their labels, decoded by all cores, packed as bytes."""
