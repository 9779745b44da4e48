"""The jobs that wait and run, each in a process of its own."""
