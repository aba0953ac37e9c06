"""Logits, metrics and results of scene classifiers."""
