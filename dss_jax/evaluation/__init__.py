"""Evaluation of a student on labelled rows."""
