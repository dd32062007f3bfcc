"""The tasks: one per file, each giving examples, labels and metrics. See `registry.TASKS`."""
