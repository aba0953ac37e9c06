"""Training on labelled scenes: students and their teachers."""
