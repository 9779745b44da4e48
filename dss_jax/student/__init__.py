"""A student: its folder, initial weights, predictions and export."""
