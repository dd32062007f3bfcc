"""Self-expanding matrices: a pruned initializer stored as its mask and its non-zeros, rebuilt by standard operators.

The runtime folds the rebuilding when it opens the file, so that what runs is the ordinary dense (or INT8) kernel.
"""
