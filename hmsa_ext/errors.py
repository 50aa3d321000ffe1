"""The base of the errors that this package raises for what its user can mend."""


class HmsaError(Exception):
    """An error with a message for the user: it names the argument or file, what came and what was expected.

    The commands print the message on one line and end with exit status 2. Subclasses also derive from the built-in
    error that they stand for, such as ``ValueError``, so that ``except ValueError`` keeps working.
    """


class ArgumentValueError(HmsaError, ValueError):
    """An argument has a value that does not fit."""


class ArgumentTypeError(HmsaError, TypeError):
    """An argument is of a type that does not fit."""
