"""The documentation agrees with the code where a machine can tell."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from engine.config import Config, ConfigError, LinkConfig, Table, parse_config
from fairslice.cli import COMMANDS
from tests.messages_in_code import operator_messages

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"


def toml_blocks() -> list[tuple[str, str]]:
    files = [ROOT / "README.md", CONFIGURATION]
    return [
        (f"{file.name}-{number}", block)
        for file in files
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", file.read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize(
    "block", [block for _, block in toml_blocks()], ids=[name for name, _ in toml_blocks()]
)
def test_configuration_examples_are_valid(block: str) -> None:
    parse_config(tomllib.loads(block))


def tables_in_docs() -> dict[str, set[str]]:
    """Section of docs/configuration.md -> the keys in the first column of its table."""
    sections = re.split(r"^## ", CONFIGURATION.read_text(), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        for section in sections
    }


def tables_in_code() -> dict[str, set[str]]:
    """Table of the configuration -> its keys."""
    tables: dict[str, set[str]] = {"Top level": set()}
    for field in msgspec.structs.fields(Config):
        value = field.default[0] if isinstance(field.default, tuple) else field.default
        if isinstance(value, Table):
            tables[field.name] = {inner.name for inner in msgspec.structs.fields(type(value))}
        else:
            tables["Top level"].add(field.name)
    return tables


def test_every_key_is_documented_and_no_other() -> None:
    assert tables_in_docs() == tables_in_code()


EXAMPLE = (ROOT / "fairslice.example.toml").read_text()
UNCOMMENTED = re.sub(r"^# (?=\w+ = |\[\[)", "", EXAMPLE, flags=re.MULTILINE)


def test_the_example_configuration_has_the_defaults() -> None:
    assert parse_config(tomllib.loads(EXAMPLE)) == Config()


def test_the_example_configuration_has_every_key() -> None:
    parse_config(tomllib.loads(UNCOMMENTED))
    tables: dict[str, set[str]] = {"Top level": set()}
    for name, value in tomllib.loads(UNCOMMENTED).items():
        table = value[0] if isinstance(value, list) else value
        if isinstance(table, dict):
            tables[name] = set(table)
        else:
            tables["Top level"].add(name)
    assert tables == tables_in_code()
    links = tomllib.loads(UNCOMMENTED)["memory"]["links"][0]
    assert set(links) == {field.name for field in msgspec.structs.fields(LinkConfig)}


def test_every_key_of_the_example_is_explained() -> None:
    lines = EXAMPLE.splitlines()
    unexplained = [
        line
        for before, line in pairwise(lines)
        if re.match(r"(# )?\w+ = ", line) and not before.startswith("##")
    ]
    assert unexplained == []


def defaults_in_docs() -> dict[tuple[str, str], str]:
    """(table, key) -> the default that docs/configuration.md gives, where that is a plain value."""
    found = {}
    for section in re.split(r"^## ", CONFIGURATION.read_text(), flags=re.MULTILINE)[1:]:
        for key, default in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE):
            found[section.splitlines()[0], key] = default
    return found


def test_the_defaults_in_the_documentation_are_those_of_the_code() -> None:
    in_code = tomllib.loads(EXAMPLE)
    for (table, key), text in defaults_in_docs().items():
        values = in_code[table][0] if isinstance(in_code[table], list) else in_code[table]
        assert tomllib.loads(f"value = {text}")["value"] == values[key], f"{table}.{key}"


TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
OUT_OF_MEMORY = "... is out of memory: ..."  # engine.model_runner.process returns it
NOT_FOUND_IN_CALLS = {  # made in ways that `operator_messages` does not follow
    OUT_OF_MEMORY,
    "unknown key; allowed here: ...",
    "expected a size such as 1073741824, ...",
}


def documented_messages() -> set[str]:
    """First columns of the tables of messages in docs/troubleshooting.md."""
    return set(re.findall(r"^\| `([^`]+)` \| ", TROUBLESHOOTING.read_text(), re.MULTILINE))


def bare(text: str) -> str:
    """A message without the name of the program before it and without doubled gaps."""
    return re.sub(r"(\.\.\.)+", "...", text).removeprefix("fairslice: ")


def test_every_message_for_operators_is_explained() -> None:
    explained = {bare(text) for text in documented_messages()}
    missing = [message for message in operator_messages() if bare(message.text) not in explained]
    assert missing == [], "docs/troubleshooting.md lacks them"


def test_every_message_explained_is_in_the_code() -> None:
    said = {bare(message.text) for message in operator_messages()}
    gone = {text for text in documented_messages() if bare(text) not in said}
    assert gone == NOT_FOUND_IN_CALLS


@pytest.mark.parametrize("text", sorted(NOT_FOUND_IN_CALLS - {OUT_OF_MEMORY}))
def test_messages_that_are_put_together(text: str) -> None:
    table: dict[str, object] = {"nonsense": 1} if "key" in text else {"memory": {"host": "much"}}
    with pytest.raises(ConfigError, match=re.escape(text.removesuffix("..."))):
        parse_config(table)


PROGRAMS = {  # how each begins in a shell -> the words after `fairslice` that mean the same
    "fairslice": [],
    "~/fairslice/bin/fairslice": [],
    "loadgen": ["loadgen"],
    "python -m fairslice": [],
    "python -m loadgen": ["loadgen"],
    "python -m engine": ["engine"],
    "python -m api": ["api"],
    "python -m api.keys": ["keys"],
    "python -m engine.memory_report": ["memory"],
    "python -m engine.simulator": ["simulate"],
}


def commands_in_docs() -> list[str]:
    """Command lines of ours in blocks of the documentation, continued lines joined."""
    blocks = [
        block
        for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)
        if language in ("", "console")
    ]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("   #")[0] for line in lines if program_of(line) is not None]


def program_of(line: str) -> str | None:
    return max((name for name in PROGRAMS if f"{line} ".startswith(f"{name} ")), key=len, default=None)


@pytest.mark.parametrize("line", commands_in_docs())
def test_commands_are_understood_as_printed(line: str) -> None:
    program = program_of(line)
    assert program is not None
    name, *arguments = [*PROGRAMS[program], *shlex.split(line.removeprefix(program))]
    (command,) = [each for each in COMMANDS if each.name == name]
    command.parser().parse_args(arguments)


def test_every_link_between_documents_leads_somewhere() -> None:
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for file in (ROOT / "docs").glob("*.md"):
        assert file.name == "README.md" or f"]({file.name})" in index, file.name


BENCHMARKS = {
    file.stem: source
    for file in (ROOT / "bench").glob("*.py")
    if '__name__ == "__main__"' in (source := file.read_text())
}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_says_what_it_measures_and_is_listed(name: str) -> None:
    assert f"    python -m bench.{name}" in BENCHMARKS[name].split('"""')[1]
    assert f"`{name}`" in (ROOT / "docs" / "benchmarks.md").read_text().partition("## The scripts")[2]
