"""The other process: executes batch commands on tensors mapped from the daemon's pool."""
