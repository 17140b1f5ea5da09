"""A process that answers requests: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class Asked:
    """It runs until it is closed, or its standard input ends with this process."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Its answer; raises RuntimeError when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process has ended: {self._process.args!r}")
        return json.loads(answer)

    def close(self) -> None:
        """Let it end."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
