"""The T5 network: layers, attention, encoder and decoder."""
