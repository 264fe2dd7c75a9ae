"""What can be wrong with a model that the configuration names. Every message is one line for a person."""


class ModelError(Exception):
    """The model cannot be loaded."""


class ModelNotFound(ModelError):
    """There is nothing at the path, or the package that carries the model is not installed."""


class BadModel(ModelError):
    """There is something, but not a model that can be served: broken, incomplete or of a wrong kind."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, and the second where the first only introduces it; libraries
    write whole paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
