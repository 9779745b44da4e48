"""Teachers: sources of labels and rationales."""
