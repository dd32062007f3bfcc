"""Recipes: read YAML, apply overrides, validate, and write the resolved recipe.

A recipe is data. Nothing in it is imported or executed; names are looked up in the tables of `registry`. `registry` imports
neither pydantic nor PyYAML, so that a process that serves a bundle starts quickly.
"""
