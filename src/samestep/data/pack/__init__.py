"""A pack: a data set in a folder, one file per column, that is mapped into memory as it is, and a manifest."""
