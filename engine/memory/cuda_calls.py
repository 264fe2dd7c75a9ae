"""Results of the CUDA bindings' calls, which return (status, values...)."""

from typing import Any


class CudaError(Exception):
    """A CUDA call failed. `name` is the status, such as CUDA_ERROR_OUT_OF_MEMORY."""

    def __init__(self, call: str, status: Any) -> None:
        self.name: str = getattr(status, "name", str(status))
        super().__init__(f"{call}: {self.name}")


def unwrap(call: str, result: tuple[Any, ...]) -> Any:
    """The first value of a result, None if it has none. Raises CudaError."""
    status, *values = result
    if int(status) != 0:
        raise CudaError(call, status)
    return values[0] if values else None
