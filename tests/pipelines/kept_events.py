"""A display for tests, which keeps every event."""

from pipelines.run.events import Event


class Kept:
    """A display that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def show(self, event: Event) -> None:
        self.events.append(event)

    def log_into(self, output: object) -> None: ...

    def close(self) -> None: ...
