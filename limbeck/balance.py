"""Several servers of one model as one: a call goes to the living one with the fewest calls under way."""

import threading
import time
from collections.abc import Sequence
from typing import Any

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 60.0
"""How long one that failed is left out, doubled each time it fails again."""


class Place:
    """A server among others: its URL, and the client that calls it."""

    def __init__(self, url: str, client: Any) -> None:
        self.url, self.client = url, client
        self.under_way, self.failures, self.rests_until = 0, 0, 0.0

    @property
    def root(self) -> str:
        """Its URL without /v1: where it is told things."""
        return self.url.removesuffix("/v1")

    def tell(self, path: str, body: dict[str, Any] | None = None) -> str | None:
        """Have it do something; None where it did, else why not."""
        import openai

        try:
            found: Any = self.client.post(f"{self.root}/{path}", cast_to=object, body=body or {})
        except openai.APIStatusError as error:
            return f"{path}: status {error.status_code}"
        except openai.APIConnectionError as error:
            return f"{path}: {type(error.__cause__ or error).__name__}"
        except (openai.APIError, ValueError):
            return None  # an empty answer
        return None if not isinstance(found, dict) or found.get("success", True) else f"{path}: refused"

    def ask(self, path: str) -> dict[str, Any] | None:
        """What it says of itself; None where it says nothing of that."""
        import openai

        try:
            found: Any = self.client.get(f"{self.root}/{path}", cast_to=object)
        except (openai.APIError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class Places:
    """The servers. Several threads may take from them."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.all, self._lock = list(places), threading.Lock()

    def take(self) -> Place:
        """The one for the next call; where all rest, the one that rests the shortest."""
        with self._lock:
            now = time.monotonic()
            place = min(self.all, key=lambda each: (max(0.0, each.rests_until - now), each.under_way))
            place.under_way += 1
            return place

    def give_back(self, place: Place, failed: bool) -> None:
        """Say how a call went: one that failed is left out for a while."""
        with self._lock:
            place.under_way -= 1
            place.failures = place.failures + 1 if failed else 0
            rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2 ** (place.failures - 1)) if failed else 0.0
            place.rests_until = time.monotonic() + rest if failed else 0.0

    @property
    def none_lives(self) -> bool:
        """Whether all of them rest."""
        now = time.monotonic()
        return all(each.rests_until > now for each in self.all)
