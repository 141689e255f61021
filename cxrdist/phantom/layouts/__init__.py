"""Layouts: how three real datasets lie on disk, filled with drawn radiographs."""
