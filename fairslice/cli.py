"""`fairslice COMMAND ...`: every command of Fairslice by one name.

A command's module is imported when it is asked for: `fairslice keys` does not load the engine.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

MakeParser = Callable[[str], argparse.ArgumentParser]


@dataclass(frozen=True, slots=True)
class Command:
    """`module` has `main(arguments, prog)`, which returns an exit status; `options`, if that is another, has
    `make_parser(prog)`."""

    name: str
    module: str
    summary: str
    options: str | None = None

    def run(self, arguments: list[str]) -> int:
        status: int = import_module(self.module).main(arguments, self.prog)
        return status

    def parser(self) -> argparse.ArgumentParser:
        """What the command understands."""
        make: MakeParser = import_module(self.options or self.module).make_parser
        return make(self.prog)

    @property
    def prog(self) -> str:
        return f"fairslice {self.name}"


COMMANDS = (
    Command("serve", "fairslice.serve", "engine and api together, until Ctrl-C or SIGTERM"),
    Command("engine", "engine.__main__", "the engine alone, with its runners"),
    Command("api", "api.__main__", "the HTTP side alone"),
    Command("health", "fairslice.health", "whether the server of a configuration answers"),
    Command("keys", "api.keys", "make, list and remove API keys"),
    Command("memory", "engine.memory_report", "pools, leases and links as measured"),
    Command("loadgen", "loadgen.cli", "replay a trace against a server, and report", "loadgen.options"),
    Command("simulate", "engine.simulator.__main__", "a trace on simulated GPUs", "engine.simulator.options"),
    Command("completion", "fairslice.completion", "completion of all this for bash and zsh"),
)

EPILOG = """`fairslice COMMAND --help` says what a command understands.

examples:
  fairslice serve                             the embedded model on the CPU, or fairslice.toml if it is there
  fairslice serve --config /etc/fairslice/fairslice.toml
  fairslice keys --file keys.json add alice --weight 2

exit status: 0 after a stop that was asked for, 2 when there is something to correct before a start;
further ones are in the help of the command."""


def make_parser(prog: str = "fairslice") -> argparse.ArgumentParser:
    """The parser of the first word; the rest is the command's."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve large language models to many people at once, fairly.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"fairslice {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.summary, add_help=False)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the command's exit status; exits with status 2 and a line on stderr if there is none such."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = {command.name: command for command in COMMANDS}
    if arguments and (command := known.get(arguments[0])) is not None:
        return command.run(arguments[1:])
    make_parser().parse_args(arguments)
    raise AssertionError("parse_args exits where no command was named")


def script() -> int:
    """The installed `fairslice`. Unlike `python -m`, it does not look for modules in the working directory,
    where other people's `api` and `engine` may be; nor shall the processes that it starts."""
    os.environ["PYTHONSAFEPATH"] = "1"
    return main()


def _version() -> str:
    try:
        return version("fairslice")
    except PackageNotFoundError:
        return "(not installed)"
