"""The documentation agrees with the code where a machine can tell."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from engine.config import Config, LinkConfig, Table, parse_config

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
    bare = [
        line
        for before, line in pairwise(lines)
        if re.match(r"(# )?\w+ = ", line) and not before.startswith("##")
    ]
    assert bare == []


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


def test_every_link_between_documents_leads_somewhere() -> None:
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
