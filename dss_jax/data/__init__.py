"""Rows, tasks, tokens and batches."""
