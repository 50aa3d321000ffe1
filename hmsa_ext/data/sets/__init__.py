"""The data sets on disk: one module each, which finds the pairs of one split (``find(root, split, ...)``)."""
