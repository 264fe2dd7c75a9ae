"""The documentation agrees with the code where a machine can tell."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from engine.config import Config, Table, parse_config

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


def test_every_link_between_documents_leads_somewhere() -> None:
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
