import subprocess
import sys

import pytest

import ovss_core


def test_the_public_names_can_be_imported_from_the_package() -> None:
    for name in ovss_core.__all__:
        assert getattr(ovss_core, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = ovss_core.Segmentor


def test_errors_can_be_imported_without_torch() -> None:
    code = "import sys, ovss_core.errors; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"
