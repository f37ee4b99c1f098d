"""Facts about the machine and about what runs on it; decides nothing."""
