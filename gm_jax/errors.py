"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input met at the border: says what was found, what was expected and how to mend it.

    The command line prints it in one or two lines and exits with status 2.
    """


class NotFiniteError(Exception):
    """A reward, a loss or the networks became NaN or infinite."""


class LostProcessError(Exception):
    """A process of a training in several is gone, or this one cannot do its part."""
