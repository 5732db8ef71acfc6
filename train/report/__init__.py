"""Plots and pages of measurements."""
