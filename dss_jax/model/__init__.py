"""The T5 student: layers, network, decoding."""
