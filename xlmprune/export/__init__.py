"""The files of a bundle, one form a module, each able to read back and check what it wrote."""
