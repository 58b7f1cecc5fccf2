"""Protocols: an encoder and a data set in, named scores out."""
