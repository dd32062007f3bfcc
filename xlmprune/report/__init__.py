"""The results of a run as JSON, Markdown, one HTML page and a model card."""
