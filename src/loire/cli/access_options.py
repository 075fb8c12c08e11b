"""Flags of `loire serve` about who may use it."""

import argparse
from pathlib import Path

from loire.base.errors import ConfigError
from loire.server.access.key_sources import ADMIN_VARIABLE, KEY_VARIABLE, KeySources
from loire.server.access.options import AccessOptions
from loire.server.access.rates import Limits
from loire.server.host.tls import TlsFiles


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """The flags. None of them has a default of its own: AccessOptions has."""
    group = parser.add_argument_group("access (docs/security.md)")
    group.add_argument(
        "--api-key-file",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="API keys, one a line, as NAME:KEY or NAME:sha256:HEX; read again when it changes "
        "(repeatable; `loire keys` writes it)",
    )
    group.add_argument(
        "--admin-key-file",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"keys that also open /admin (repeatable) [{ADMIN_VARIABLE}]",
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key; other users see it in the list of processes (repeatable) [{KEY_VARIABLE}]",
    )
    group.add_argument(
        "--allow-no-key",
        action="store_true",
        help="let other machines in without a key",
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this server in Host headers, beside the machine's own; * for all "
        "(repeatable) [without keys none, with keys all]",
    )
    group.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of other servers that may ask this one, such as https://chat.example; * for "
        "all (repeatable) [none]",
    )
    group.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="serve HTTPS with this certificate chain (PEM); read again when it changes",
    )
    group.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="its key [in the certificate's file]"
    )
    group.add_argument("--public-metrics", action="store_true", help="/metrics needs no key")
    for flag, what in (
        ("--limit-requests-per-minute", "sequences begun a minute"),
        ("--limit-tokens-per-minute", "tokens a minute, of prompts and outputs"),
        ("--limit-concurrency", "sequences at a time"),
        ("--limit-storage-bytes", "bytes of files [16 GiB]"),
    ):
        group.add_argument(
            flag, type=int, metavar="N", help=f"most {what} per key, if the key file says no other"
        )


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """Certificate and key from the flags. Raises ConfigError for a key alone."""
    if args.tls_cert is None:
        if args.tls_key is not None:
            raise ConfigError("--tls-key needs the certificate of this key: give --tls-cert, too")
        return None
    return TlsFiles(args.tls_cert, args.tls_key)


def access_options(args: argparse.Namespace) -> AccessOptions:
    """Settings from the flags that were given."""
    return AccessOptions(
        keys=KeySources(args.api_key_file, args.admin_key_file, args.api_key),
        limits=Limits(
            requests_per_minute=args.limit_requests_per_minute,
            tokens_per_minute=args.limit_tokens_per_minute,
            concurrency=args.limit_concurrency,
            storage_bytes=args.limit_storage_bytes,
        ),
        allow_no_key=args.allow_no_key,
        public_metrics=args.public_metrics,
        allowed_hosts=args.allowed_host,
        allowed_origins=args.allowed_origin,
    )
