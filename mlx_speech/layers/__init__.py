"""What architectures share: attention, its caches, rotary positions, activations, adapters."""
