"""`python -m api.keys`: make, list and remove API keys. Running servers notice within a second.

python -m api.keys add NAME [--weight 2] [--tokens-per-minute 100000] ...
python -m api.keys list
python -m api.keys remove NAME-OR-KEY-ID
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from api.key_file import (
    KeyEntry,
    KeyFile,
    KeyFileError,
    TenantEntry,
    hash_of,
    id_of,
    locked,
    new_key,
    read_key_file,
    write_key_file,
)
from engine.config import ConfigError, load_config

OPTIONS: dict[str, tuple[type, str]] = {
    "weight": (float, "share of GPU time relative to other tenants' (default 1)"),
    "nice": (int, "-20 to 19: each step down is a quarter more weight"),
    "max-prompts": (int, "prompts that may be open at once"),
    "max-tokens": (int, "context lengths of open prompts, summed, at their longest"),
    "requests-per-minute": (int, "requests accepted in a minute"),
    "tokens-per-minute": (int, "tokens of prompts and answers in a minute"),
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        path = _path(options)
        with locked(path):
            file = read_key_file(path) if path.exists() or options.command != "add" else KeyFile()
            match options.command:
                case "add":
                    _add(path, file, options)
                case "remove":
                    write_key_file(path, _without(file, options.name))
                case _:
                    _list(file)
    except (ConfigError, KeyFileError) as error:
        print(f"fairslice keys: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description="API keys of tenants.")
    parser.add_argument("--config", metavar="FILE", help="configuration whose server.keys names the key file")
    parser.add_argument("--file", metavar="FILE", help="the key file itself")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="a new key, for a new tenant or one that is there")
    add.add_argument("name", help="the tenant")
    for name, (kind, text) in OPTIONS.items():
        add.add_argument(f"--{name}", type=kind, help=text)
    add.add_argument("--operator", action="store_true", default=None, help="may read /metrics")
    commands.add_parser("list", help="tenants, their limits and the ids of their keys")
    remove = commands.add_parser("remove", help="a tenant with all its keys, or one key")
    remove.add_argument("name", help="the tenant, or the id of a key")
    return parser


def _path(options: argparse.Namespace) -> Path:
    if options.file is not None:
        return Path(options.file)
    keys = load_config(options.config).server.keys
    if keys is None:
        raise KeyFileError("name the key file with --file, or as server.keys in the configuration")
    return Path(keys)


def _add(path: Path, file: KeyFile, options: argparse.Namespace) -> None:
    """Print the key: the only time that it is shown."""
    key = new_key()
    entry = KeyEntry(id=id_of(key), sha256=hash_of(key), created=f"{datetime.now(UTC):%Y-%m-%d}")
    others = [tenant for tenant in file.tenants if tenant.name != options.name]
    old = next((tenant for tenant in file.tenants if tenant.name == options.name), None)
    fields = msgspec.structs.asdict(old or TenantEntry(name=options.name, keys=[]))
    fields |= {"keys": [*fields["keys"], entry]}
    for name in ("operator", *(option.replace("-", "_") for option in OPTIONS)):
        if (value := getattr(options, name)) is not None:
            fields[name] = value
    try:
        tenant = msgspec.convert(fields, TenantEntry, from_attributes=True)
    except msgspec.ValidationError as error:
        raise KeyFileError(str(error)) from None
    write_key_file(path, KeyFile(tenants=[*others, tenant]))
    print(key)


def _without(file: KeyFile, name: str) -> KeyFile:
    """The file without a tenant, or without one key. Raises KeyFileError if it has neither."""
    if any(tenant.name == name for tenant in file.tenants):
        return KeyFile(tenants=[tenant for tenant in file.tenants if tenant.name != name])
    if not any(key.id == name for tenant in file.tenants for key in tenant.keys):
        raise KeyFileError(f"no tenant and no key id is {name!r}")
    return KeyFile(
        tenants=[
            msgspec.structs.replace(tenant, keys=[key for key in tenant.keys if key.id != name])
            for tenant in file.tenants
        ]
    )


def _list(file: KeyFile) -> None:
    for tenant in file.tenants:
        fields = msgspec.to_builtins(tenant)
        fields.pop("keys")
        name = fields.pop("name")
        print(" ".join([name, *(f"{key}={value}" for key, value in fields.items())]))
        for key in tenant.keys:
            print(f"  {key.id} made {key.created}")


if __name__ == "__main__":
    sys.exit(main())
