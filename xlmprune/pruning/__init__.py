"""Masks, schedules, criteria, regularizers, structures and reconstruction."""
