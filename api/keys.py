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

EPILOG = """examples:
  python -m api.keys --file keys.json add alice --weight 2 --tokens-per-minute 100000
  python -m api.keys --file keys.json add grafana --operator
  python -m api.keys --config fairslice.toml list
  python -m api.keys --config fairslice.toml remove alice

exit status: 0, or 2 with one line on standard error"""

OPTIONS: dict[str, tuple[type, str]] = {
    "weight": (float, "share of GPU time relative to other tenants' (default: 1)"),
    "nice": (int, "-20 to 19, each step down a quarter more weight (default: 0)"),
    "max-prompts": (int, "prompts that may be open at once (default: no limit)"),
    "max-tokens": (int, "context lengths of open prompts, summed (default: no limit)"),
    "requests-per-minute": (int, "requests accepted in a minute (default: no limit)"),
    "tokens-per-minute": (int, "tokens of prompts and answers in a minute (default: no limit)"),
}


def main(arguments: list[str] | None = None, prog: str = "python -m api.keys") -> int:
    """Exit code: 0, or 2 with one line on standard error."""
    options = make_parser(prog).parse_args(arguments)
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


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="API keys of tenants. A new key is printed once; running servers notice within a second.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration whose server.keys names the key file (default: as for serving)",
    )
    parser.add_argument("--file", metavar="FILE", help="the key file itself (default: the configuration's)")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "add",
        help="a new key, for a new tenant or one that is there",
        description="Print a new key. Of a tenant that is there, what is not named stays as it is.",
    )
    add.add_argument("name", help="the tenant")
    for name, (kind, text) in OPTIONS.items():
        add.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    add.add_argument(
        "--operator", action="store_true", default=None, help="may read /metrics (default: may not)"
    )
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
