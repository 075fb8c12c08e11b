"""Fixtures of all tests of the server."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def data_in_a_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications that are given no folder keep nothing in the user's."""
    monkeypatch.setattr("loire.server.host.app.loire_home", lambda: tmp_path / "home")
