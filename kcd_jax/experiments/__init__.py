"""Experiments: named runs times seeds, from configs or from code."""
