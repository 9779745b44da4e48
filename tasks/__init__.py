"""Data sets as tasks, one short file each; `dss distill --task NAME` looks here for NAME.

In a wheel this folder is the package `dss_jax.tasks`.
"""
