"""Jobs whose files are encrypted, under a key of the operator."""
