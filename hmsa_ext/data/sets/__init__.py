"""The data sets: one module each, whose ``SOURCE`` declares the options. See :mod:`hmsa_ext.data.source`."""
