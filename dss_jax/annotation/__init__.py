"""Asking a teacher for what rows lack: prompts, parsing, journal, report."""
