"""The shipped tasks, one file per data set; `dss distill --task NAME` finds NAME here.

In a wheel this folder is the package `dss_jax.tasks`.
"""
