"""Public T5 checkpoints, read and written."""
