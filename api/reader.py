"""Bodies of requests as values of their types, or the error that names the field at fault."""

import re
from typing import Generic, TypeVar

import msgspec

from api.errors import ApiError, bad_request
from api.schemas import Strict

Body = TypeVar("Body", bound=Strict)


class Reader(Generic[Body]):
    """Reads bodies of one type."""

    def __init__(self, kind: type[Body]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def read(self, data: bytes) -> Body:
        """Raises ApiError naming the field at fault."""
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise _explain(str(error)) from None
        except msgspec.DecodeError as error:
            raise bad_request(None, f"The body is not valid JSON: {error}", "invalid_json") from None
        except UnicodeDecodeError as error:
            message = f"The body is not valid UTF-8: {error.reason} at {error.start} of a string"
            raise bad_request(None, message, "invalid_utf8") from None
        except RecursionError:
            raise bad_request(None, "The body is nested too deeply", "invalid_json") from None


_FIELD_IN_MESSAGE = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)


def _explain(error: str) -> ApiError:
    """Turn msgspec's "Expected `int` >= 1 - at `$.n`" into an error with `param` "n"."""
    problem, _, place = error.partition(" - at ")
    key_of = place.startswith("`key`")  # "`key` in `$.logit_bias`": a key of that object
    path = place.rpartition("$")[2].strip("`").lstrip(".").removesuffix("[...]")
    named = _FIELD_IN_MESSAGE.fullmatch(problem)
    if named is None:
        where = f"{'a key of ' if key_of else ''}{path or 'the body'}"
        return bad_request(path or None, f"{where}: {problem[0].lower()}{problem[1:]}")
    param = f"{path}.{named[1]}" if path else named[1]
    if problem.startswith("Object missing"):
        return bad_request(param, f"{param} is required", "missing_required_parameter")
    return bad_request(param, f"{param} is not supported here", "unsupported_parameter")
