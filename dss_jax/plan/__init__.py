"""Planning a run for TPUs that are not here: what its step takes, before a chip is paid for."""
