"""The version of this project, its command `scenes`, and what all its command lines share."""

__version__ = "0.1.0"
