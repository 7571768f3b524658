"""Teachers: the kinds, their files, and the readers of PyTorch checkpoints."""
