"""The command line: what may be asked for, checked as it is read."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen import arrivals, tenants
from loadgen.plan import Endpoint
from loadgen.prompts import TokenIds
from loadgen.spec import SpecError, named_numbers, positive, row_slice, whole, whole_range
from loadgen.traces import TraceSpec

Value = TypeVar("Value")

_EPILOG = """examples:
  loadgen run --trace synthetic:rows=50,input=10-60,output=8-24 --arrivals poisson:2 --out results/first
  loadgen run --trace azure:FILE --rows 0:300 --arrivals poisson:8 --ignore-eos --out results/azure
  loadgen compare results/first results/azure

`loadgen run --help` and `loadgen compare --help` list the options. Outside of an installation, loadgen is
`python -m loadgen`.

exit status: 0 when every request that was sent finished, 1 when some failed, 2 when nothing was sent (bad
arguments, a bad trace, a folder that cannot be written), 130 when the run was interrupted"""

_ENDPOINTS = {"completions": Endpoint.COMPLETIONS, "chat": Endpoint.CHAT}


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Replay a trace against an OpenAI-compatible server and report how it fared.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    # No abbreviations: the report has the command line, and leaves out what follows --api-key.
    run = commands.add_parser("run", help="send requests, write a report", allow_abbrev=False)
    _server_options(run.add_argument_group("server"))
    _load_options(run.add_argument_group("load"))
    _request_options(run.add_argument_group("requests"))
    _tenant_options(run.add_argument_group("tenants"))
    _result_options(run.add_argument_group("results"))
    compare = commands.add_parser("compare", help="lay the reports of several runs over each other")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that `run` wrote")
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("results/compare"),
        help="folder for the report (default: %(default)s)",
    )
    return parser


def parse(arguments: list[str] | None = None, prog: str = "loadgen") -> argparse.Namespace:
    """Exits with status 2 and a line on stderr if the arguments are not usable."""
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    if options.command == "run":
        _check_together(parser, options)
    return options


def _check_together(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.speedup is not None:
        if not isinstance(options.arrivals, arrivals.TraceTimes):
            parser.error("--speedup is for the trace's own times (--arrivals trace)")
        options.arrivals = arrivals.TraceTimes(options.speedup)
    if options.prompts is None:
        options.prompts = "text" if options.endpoint is Endpoint.CHAT else "ids"
    if options.endpoint is Endpoint.CHAT and options.prompts == "ids":
        parser.error("--prompts ids cannot be sent to the chat endpoint")
    try:
        options.identity = tenants.Identity.parse(options.tenant_by, options.api_key)
    except SpecError as error:
        parser.error(f"--tenant-by: {error}")
    if unknown := set(options.tenant_weights) - set(options.tenants.names):
        parser.error(f"--tenant-weights names {', '.join(sorted(unknown))}, which is no tenant of this run")


def _form(parse_text: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser whose complaint argparse shows."""

    def convert(text: str) -> Value:
        try:
            return parse_text(text)
        except SpecError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _least_one(text: str) -> int:
    return whole(text, least=1)


def _base_url(text: str) -> str:
    """The address with /v1 at its end."""
    if not text.startswith(("http://", "https://")):
        raise SpecError(f"must begin with http:// or https://, not {text!r}")
    address = text.rstrip("/")
    return address if address.endswith("/v1") else f"{address}/v1"


def _endpoint(text: str) -> Endpoint:
    if text not in _ENDPOINTS:
        raise SpecError(f"must be {' or '.join(_ENDPOINTS)}, not {text!r}")
    return _ENDPOINTS[text]


def _output_range(text: str) -> tuple[int, int]:
    return whole_range(text, ":", least=1)


def _vocabulary(text: str) -> TokenIds:
    low, high = whole_range(text, ":")
    if low == high:
        raise SpecError(f"must be FROM:TO with FROM below TO, not {text!r}")
    return TokenIds(low, high)


def _temperature(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else positive(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SpecError(f"must be a JSON object: {error}") from error


def _server_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--url",
        type=_form(_base_url),
        default="http://127.0.0.1:8000/v1",
        metavar="URL",
        help="address of the API (default: %(default)s)",
    )
    add("--model", metavar="NAME", help="default: the first that the server lists")
    add(
        "--endpoint",
        type=_form(_endpoint),
        default=Endpoint.COMPLETIONS,
        help="completions (default) or chat",
    )
    add("--max-connections", type=_form(_least_one), metavar="N", help="open at once (default: no limit)")
    add(
        "--stall-timeout",
        type=_form(positive),
        default=60.0,
        metavar="S",
        help="a request fails when nothing comes for so many seconds (default: %(default)g)",
    )
    add(
        "--timeout",
        type=_form(positive),
        metavar="S",
        help="a request fails after so many seconds (default: never)",
    )


def _load_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--trace",
        type=_form(TraceSpec.parse),
        required=True,
        help="azure:FILE, burstgpt:FILE, mooncake:FILE, "
        "sharegpt:FILE or synthetic:rows=N,input=A-B,output=A-B",
    )
    add(
        "--rows",
        type=_form(row_slice),
        default=(0, None),
        metavar="FROM:TO",
        help="rows of the trace to send (default: all)",
    )
    add(
        "--arrivals",
        type=_form(arrivals.parse_arrivals),
        default=arrivals.TraceTimes(),
        help=f"{arrivals.FORMS}; default: trace",
    )
    add(
        "--seed", type=_form(whole), default=0, help="of arrivals, tenants and prompts (default: %(default)s)"
    )
    add("--speedup", type=_form(positive), metavar="X", help="divides the trace's own times (default: 1)")
    add(
        "--duration",
        type=_form(positive),
        metavar="S",
        help="send nothing after so many seconds (default: to the end of the trace)",
    )
    add("--warmup", type=_form(whole), default=1, metavar="N", help="short requests sent before (default: 1)")


def _request_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--max-input",
        type=_form(_least_one),
        metavar="N",
        help="cut prompts to so many tokens (default: not cut)",
    )
    add(
        "--output-range",
        type=_form(_output_range),
        metavar="A:B",
        help="raise or cut outputs to A..B tokens (default: neither)",
    )
    add("--prompts", choices=("ids", "text"), help="default: ids for completions, text for chat")
    add(
        "--vocab",
        type=_form(_vocabulary),
        default=TokenIds(),
        metavar="FROM:TO",
        help="token ids that prompts are drawn from (default: 32:256)",
    )
    add(
        "--ignore-eos",
        action="store_true",
        help="ask for outputs of the full length (default: an end token ends them)",
    )
    add("--temperature", type=_form(_temperature), metavar="T", help="0 to 2 (default: the server's)")
    add(
        "--extra",
        type=_form(_json_object),
        default={},
        metavar="JSON",
        help="an object merged into every request (default: nothing)",
    )
    add(
        "--continuous-usage",
        choices=("auto", "on", "off"),
        default="auto",
        help="ask for usage in every event; auto (default): if the warm-up shows that the server can",
    )


def _tenant_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--tenants",
        type=_form(tenants.parse_tenants),
        default=tenants.parse_tenants("round-robin:1"),
        help=f"{tenants.FORMS}; default: one tenant",
    )
    add(
        "--tenant-by", default="user", help="user (default), key, header:NAME or none: how the server is told"
    )
    add(
        "--tenant-weights",
        type=_form(named_numbers),
        default={},
        metavar="NAME=W,...",
        help="as the server has them, for the fairness figures (default: 1 each)",
    )
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="[TENANT=]KEY",
        help="what a tenant, or all, send; may be repeated (default: none)",
    )


def _result_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the report (default: results/NAME)"
    )
    group.add_argument("--name", help="of the run in reports (default: the folder's, else date and time)")
