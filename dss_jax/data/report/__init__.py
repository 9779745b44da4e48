"""The report on a data set: its figures, warnings, and their text for a terminal."""
