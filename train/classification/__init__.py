"""Training of scene classifiers: students and their teachers."""
