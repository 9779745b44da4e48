"""Registered students as endpoints, and what they answer."""
