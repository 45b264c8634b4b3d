"""The trainer of clsd-fast and its command ``clsd``."""
