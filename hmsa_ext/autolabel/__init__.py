"""Automatic labels: ``hmsa autolabel``, what it made in figures, and the way to people who correct it and back."""
