"""Teachers: who is asked for labels and rationales."""
