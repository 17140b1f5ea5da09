"""shardkit completion: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse

from shardkit.errors import MissingPackage

DESCRIPTION = """\
Print a script with which a shell completes shardkit's commands, options and
choices. It needs the package shtab: pip install "shardkit[completion]"."""

EXAMPLES = """\
examples:
  shardkit completion bash > ~/.local/share/bash-completion/completions/shardkit
  shardkit completion zsh > ~/.zfunc/_shardkit
  shardkit completion fish > ~/.config/fish/completions/shardkit.fish"""

SHELLS = ("bash", "zsh", "fish")


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of `completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    """Run `completion`."""
    from .main import make_whole_parser

    try:
        import shtab
    except ModuleNotFoundError as err:
        raise MissingPackage(
            "shardkit completion needs shtab",
            fix='Install it: pip install "shardkit[completion]"',
        ) from err
    print(shtab.complete(make_whole_parser(), shell=args.shell))
    return 0
