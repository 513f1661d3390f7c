"""What a user may set about written descriptions; reading it needs no client."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ovss_core.description_review import ReviewRules
from ovss_core.errors import ConfigError

_SPARE = 2
"""Sentences that an answer may have more than it was asked for."""


@dataclass(frozen=True)
class DescribeOptions:
    """How descriptions are written.

    Attributes:
        endpoint: Address of an OpenAI-compatible service, such as ``http://localhost:8000/v1``. Its key, if it wants one,
            comes from the environment variable OPENAI_API_KEY and is never written down.
        model: The name by which the service knows the model.
        output: JSON file of sentences by class, for --descriptions; every question and answer is kept beside it.
        sentences: Sentences to ask for, a class; two more are accepted.
        attempts: How often one class is asked for; an answer that the review refuses is told why.
        retries: How often one request is sent again after an error that may pass: 429, 5xx, a broken connection.
        timeout_s: How long one answer may take.
        temperature: How freely the model writes; unset leaves the service's own.
        overwrite: Forget what an earlier start with another prompt, model or vocabulary has written there.
    """

    endpoint: str
    model: str
    output: str
    sentences: int = 6
    attempts: int = 4
    retries: int = 6
    timeout_s: float = 120.0
    temperature: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("sentences", 1, 20), ("attempts", 1, 100), ("retries", 0, 100)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"--{name} is {getattr(self, name)}; give a number from {least} to {most}")
        if not 0 < self.timeout_s < float("inf"):
            raise ConfigError(f"--timeout-s is {self.timeout_s}; give seconds above 0")
        if urlsplit(self.endpoint).scheme not in ("http", "https") or not urlsplit(self.endpoint).hostname:
            raise ConfigError(
                f"--endpoint {self.endpoint.rpartition('@')[2]} is no address; give one such as http://localhost:8000/v1"
            )
        if urlsplit(self.endpoint).username or urlsplit(self.endpoint).password:
            raise ConfigError(
                "--endpoint holds a name or password; give the key as the environment variable OPENAI_API_KEY"
            )

    @property
    def rules(self) -> ReviewRules:
        """What an answer must keep to."""
        return ReviewRules(least=self.sentences, most=self.sentences + _SPARE)
