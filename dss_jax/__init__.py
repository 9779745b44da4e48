"""Distil a large teacher language model, step by step, into a small T5 student."""

__version__ = "0.1.0"
