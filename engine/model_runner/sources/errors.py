"""What can be wrong with a model that the configuration names. Every message is one line for a person."""


class ModelError(Exception):
    """The model cannot be loaded."""


class ModelNotFound(ModelError):
    """There is nothing at the path, or the package that carries the model is not installed."""


class BadModel(ModelError):
    """There is something, but not a model that can be served: broken, incomplete or of a wrong kind."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message; libraries write whole paragraphs."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
