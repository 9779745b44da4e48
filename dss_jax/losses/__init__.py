"""Losses as pure functions that give a LossSum."""
