"""The teacher: a language model is asked for labels and rationales, and what it says is checked."""
