"""What is recorded of the environment."""

from __future__ import annotations

import shlex
import sys

import pytest

from inheritune import environment


def test_the_command_is_one_that_a_shell_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data.sources", '[{path: "my texts/*.txt"}]', "--out", "a;b", "it's"]
    monkeypatch.setattr(sys, "argv", ["/some/bin/inheritune", "run", *words])
    assert shlex.split(environment.describe()["command"]) == ["inheritune", "run", *words]
