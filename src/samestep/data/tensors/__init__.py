"""Samples that are arrays already: what a map-style data set of torch gives, read once."""
