"""Acoustic scene classification with TF-SepNet-64 and BEATs: the version of this project, and its command `scenes`."""

__version__ = "0.1.0"
