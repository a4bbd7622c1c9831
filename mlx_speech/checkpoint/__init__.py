"""Checkpoints: a folder or a repository on the Hub -> tensors in a model."""
