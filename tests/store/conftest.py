"""An open store on a real file, with a clock that the tests set."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from june.store import Store, open_store
from tests.stored import Clock


@pytest.fixture
def clock() -> Clock:
    """Return the store's clock, which stands still until a test moves it."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file is."""
    return tmp_path / "june.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[Store]:
    """Open a store without messages."""
    async with open_store(path, clock=clock) as opened:
        yield opened
