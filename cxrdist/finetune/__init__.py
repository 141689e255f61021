"""Supervised training of a backbone on one dataset's findings."""
