"""samestep against plain torch or DistributedDataParallel: trained side by side, and every difference explained."""
