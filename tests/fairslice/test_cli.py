"""Every command explains itself in full, and the script of completions knows what they understand."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairslice.cli import COMMANDS, main, make_parser
from fairslice.completion import script

ROOT = Path(__file__).parents[2]


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All of them, by the words that lead to them."""
    yield "fairslice", make_parser()
    for command in COMMANDS:
        yield from with_subcommands(command.prog, command.parser())


def with_subcommands(
    words: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from with_subcommands(f"{words} {name}", inner)


@pytest.mark.parametrize(("words", "parser"), list(parsers()), ids=[words for words, _ in parsers()])
def test_options_say_what_they_mean_and_what_they_are_without(
    words: str, parser: argparse.ArgumentParser
) -> None:
    one_of = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction | argparse._VersionAction):
            continue
        assert action.help, f"{words}: {action.dest} is not explained"
        if action.option_strings and not action.required and not any(action in group for group in one_of):
            has_default = "default" in action.help or action.help.endswith(")")
            assert has_default, f"{words}: {action.dest} does not say its default"
    assert parser.format_help()  # no stray % in it


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_commands_give_examples_and_exit_statuses(command: object) -> None:
    epilog = command.parser().epilog  # type: ignore[attr-defined]
    assert "examples:" in epilog
    assert "exit status: 0" in epilog


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_help_is_reached_by_the_commands_name(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = command.name  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: fairslice {name}")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--nonsense"]])
def test_what_is_no_command_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "fairslice: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["engine", "api", "api.keys", "engine.memory_report", "loadgen", "fairslice"]
)
def test_modules_answer_help_by_their_own_names(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "exit status" in done.stdout


@pytest.mark.parametrize("name", ["serve", "test"])
def test_scripts_answer_help(name: str) -> None:
    done = subprocess.run([ROOT / "bin" / name, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: bin/{name}")
    assert "exit status" in done.stdout


def complete(line: str) -> set[str]:
    """What bash offers at the end of a line."""
    words = shlex.split(line)
    if line.endswith(" "):
        words.append("")
    array = " ".join(map(shlex.quote, words))
    program = (
        f'{script()}\nCOMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _fairslice; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fairslice se", {"serve"}),
        ("fairslice serve --c", {"--config"}),
        ("fairslice serve --config ", set()),  # bash goes on with the names of files
        ("fairslice keys --file keys.json ", {"add", "list", "remove", "--config", "--file", "--help"}),
        ("fairslice keys add alice --op", {"--operator"}),
        ("fairslice loadgen run --prompts ", {"ids", "text"}),
        ("fairslice simulate --mo", {"--moves"}),
    ],
)
def test_completion_in_bash(line: str, offered: set[str]) -> None:
    assert complete(line) == offered
