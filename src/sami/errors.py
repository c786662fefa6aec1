"""The one error that means "the input cannot work", as opposed to a defect of the program."""


class InputError(ValueError):
    """What was given, why it cannot work, what to do: two or three sentences for a person.

    The command line prints the message without a traceback and exits with code 2.
    """


def one_line(error: object) -> str:
    """What an error says, on one line, for the message of another one."""
    return " ".join(str(error).split())
