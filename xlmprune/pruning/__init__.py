"""Masks, schedules, criteria and regularizers."""
