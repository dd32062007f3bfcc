"""What is removed and how the rest makes up for it: structures, and least-squares reconstruction."""
