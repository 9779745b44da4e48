"""Meshes, shardings and the processes of one run."""
