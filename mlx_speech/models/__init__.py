"""The architectures: each family's network and configuration, named as in its checkpoints."""
