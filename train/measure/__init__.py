"""Measurements: scores, text, speed, streams, costs of compiled programs."""
