"""Changes the size of a device's pools while the engine serves: gives memory back to other programs, or takes
it again.

python -m engine.resize DEVICE SIZE [--config FILE]

SIZE is what the device's pools are to have in all, such as 40GiB or "512 MiB"; the most is what they had at
the engine's start. Waits until it is done. Nothing that is there is lost: see docs/memory.md.
"""

import argparse
import sys
import time

from engine.config import ByteSize, ConfigError, load_config
from engine.messages import GetStats, Resize, Resizing, Stats
from engine.questions import NoAnswer, Questions
from engine.socket_folder import ensure_socket_folder

POLL_S = 0.2
TIMEOUT_S = 600.0


def main() -> int:
    """Returns the exit status: 0; 1 if it cannot be, or was not done in time; 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("device")
    parser.add_argument("size")
    parser.add_argument("--config")
    options = parser.parse_args()
    try:
        num_bytes, config = int(ByteSize.parse(options.size)), load_config(options.config)
        ensure_socket_folder(config)
    except (ValueError, ConfigError) as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    try:
        with Questions(config.socket_path, "resize") as questions:
            return resize(questions, options.device, num_bytes)
    except NoAnswer as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 1


def resize(questions: Questions, device: str, num_bytes: int) -> int:
    """Ask for it, and tell how it goes; the exit status."""
    answer = questions.ask(Resize(serial=1, device=device, num_bytes=num_bytes), Resizing)
    if answer.error is not None:
        print(f"fairslice: {answer.error}", file=sys.stderr)
        return 1
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        pools = questions.ask(GetStats(serial=2), Stats).status["pool_sizes"]
        assert isinstance(pools, dict)
        has, settled = pools[device]["bytes"], pools[device]["settled"]
        if settled or time.monotonic() >= deadline_s:
            break
        time.sleep(POLL_S)
    is_done = settled and pools[device]["wanted"] == answer.num_bytes
    print(
        f"the pools of {device} have {has / 2**20:,.4g} MiB{'' if is_done else ', and not what was wished'}"
    )
    return 0 if is_done else 1


if __name__ == "__main__":
    sys.exit(main())
