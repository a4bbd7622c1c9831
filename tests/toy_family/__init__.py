"""A speech family from outside the package: it tells long sentences from short ones."""
