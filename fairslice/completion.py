"""`fairslice completion bash|zsh`: prints a completion script, made from the commands' own parsers."""

import argparse
from collections.abc import Iterator

EPILOG = """examples:
  source <(fairslice completion bash)         for this shell; in ~/.bashrc, for every one
  source <(fairslice completion zsh)          after compinit

exit status: 0"""

_SCRIPT = """\
_fairslice() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} path=fairslice words= word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $word" in
            {paths}) path="$path $word" ;;
        esac
    done
    case "$path $prev" in
{values}
    esac
    case $path in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _fairslice fairslice"""


def make_parser(prog: str = "fairslice completion") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Print a script that completes commands, options and their values.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="whose script")
    return parser


def main(arguments: list[str] | None = None, prog: str = "fairslice completion") -> int:
    """Returns the exit status."""
    options = make_parser(prog).parse_args(arguments)
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(script())
    return 0


def script() -> str:
    """The function that bash calls; zsh reads it too, through bashcompinit."""
    from fairslice.cli import COMMANDS  # which has this module in its table

    parsers: dict[str, argparse.ArgumentParser] = {}
    for command in COMMANDS:
        parsers |= _with_subcommands(command.prog, command.parser())
    words = {"fairslice": " ".join(["--help", "--version", *(command.name for command in COMMANDS)])}
    words |= {path: " ".join(_words(parser)) for path, parser in parsers.items()}
    values = [line for path, parser in parsers.items() for line in _values(path, parser)]
    return _SCRIPT.format(
        paths=" | ".join(f'"{path}"' for path in parsers),
        values="\n".join(values),
        words="\n".join(f'        "{path}") words="{text}" ;;' for path, text in words.items()),
    )


def _with_subcommands(path: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser and those below it, by the words that lead there."""
    found = {path: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= _with_subcommands(f"{path} {name}", inner)
    return found


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options, subcommands, and the values of arguments that have a few."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if not action.option_strings and action.choices is not None:
            yield from map(str, action.choices)


def _values(path: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """What may come after an option that takes a value: one of a few, or else a file's name."""
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        patterns = " | ".join(f'"{path} {option}"' for option in action.option_strings)
        choices = " ".join(map(str, action.choices or ()))
        reply = f'COMPREPLY=($(compgen -W "{choices}" -- "$cur"))' if choices else "COMPREPLY=()"
        yield f"        {patterns}) {reply}; return ;;"
