"""The jobs of the command line, from configuration to result."""
