"""Automatic labels on their way to people who correct them and back: a folder that annotators' tools read and write."""
