"""The loop that fine-tunes and prunes, and the teacher beside it."""
