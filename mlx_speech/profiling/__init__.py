"""How fast a model is on this machine, and how much of what the machine can do that is."""
