"""What a machine or a cluster has, what is missing, and what to do about it."""
