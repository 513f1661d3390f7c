"""What pyarrow hands on of the errors of Google's client, in words that help."""

import pytest

from ovss_core.errors import StorageError
from pipelines.storage import Folder
from pipelines.transport.causes import explain

_CURL = "PerformWork() - CURL error "
_TOKEN = (
    "Could not create a OAuth2 access token to authenticate the request. The underlying error message was"
)


def said(status: str, text: str, operation: str = "ReadObject") -> OSError:
    """Write an error as pyarrow 26 hands on that of Google's client."""
    why = f"gcloud-cpp.retry.function={operation}, gcloud-cpp.retry.reason=retry-policy-exhausted"
    notes = f"error_info={{reason=, domain=, metadata={{{why}, gcloud-cpp.retry.original-message={text}}}}}"
    return OSError(
        f"google::cloud::Status({status}: Retry policy exhausted, with a last message of {text} {notes})"
    )


@pytest.mark.parametrize(
    ("error", "kind", "passing", "told"),
    [
        (said("UNAVAILABLE", "Busy"), "HTTPError", True, "unavailable (ReadObject) from gs://b: Busy"),
        (said("INTERNAL", "Late"), "HTTPError", True, "internal (ReadObject) from gs://b: Late"),
        (said("NOT_FOUND", "x", "ListObjects"), "FileNotFoundError", False, "no such bucket: gs://b"),
        (
            said("UNAVAILABLE", f"{_CURL}[7]=Could not"),
            "ConnectionError",
            True,
            "connection refused by gs://b",
        ),
        (said("UNAVAILABLE", f"{_CURL}[60]=x"), "ConnectionError", False, "the certificate of gs://b is not"),
        (
            said("UNAVAILABLE", f"{_TOKEN}: {_CURL}[6]=x"),
            "PermissionError",
            False,
            "no credentials for gs://b: run",
        ),
        (
            said("UNAVAILABLE", f"{_TOKEN}: {_CURL}[28]=x"),
            "PermissionError",
            True,
            "no credentials for gs://b: run",
        ),
        (ValueError("I/O operation on closed file"), "ConnectionError", True, "no answer from gs://b"),
    ],
)
def test_what_goes_wrong_is_told_in_words_that_help(
    error: Exception, kind: str, passing: bool, told: str
) -> None:
    explained = explain(error, "gs://b/x/y.jpg")
    assert str(explained).startswith(told)
    assert (explained.error_type, explained.transient) == (kind, passing)


def test_an_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(StorageError, match=r"gs:///x names no bucket"):
        Folder("gs:///x").names()
