"""Fixtures for the tests of targets."""

from __future__ import annotations

import pytest


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next attempt of a webhook come at once."""
    from pillarbox.deliver.webhook import endpoint

    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 0.002)
