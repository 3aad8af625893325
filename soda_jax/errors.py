"""Defines the exception that the command line prints as a single line."""


class UserError(Exception):
    """An error in the input, the settings or the files that the user can fix.

    The message is one line that names the file, the value and the fix. The command line prints it
    without a traceback and exits with status 2; from Python it is an ordinary exception.
    """
