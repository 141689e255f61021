"""Predictions and the metrics of a validation."""
