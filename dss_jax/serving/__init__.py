"""Serving: a student behind HTTP, with the APIs of OpenAI and of the hosted service."""
