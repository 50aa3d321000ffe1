"""The trainer: configuration, the loop, distribution over processes, checkpoints, evaluation, logs and pictures.

The commands (``hmsa_ext.train``, ``hmsa_ext.evaluate``) parse and call what is here; nothing here knows a flag.
"""
