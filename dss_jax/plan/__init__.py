"""Planning a run: its training step compiled for a TPU slice on a machine without TPUs."""
