"""Decoding with an encoder-decoder: greedy and beam search."""
