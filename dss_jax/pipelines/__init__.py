"""The jobs of the command line, from beginning to end."""
