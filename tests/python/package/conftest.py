"""What the tests of the Debian package and of the image share. They need root."""

import os

import pytest

from support.processes import ROOT


@pytest.fixture(scope="session")
def root():
    if os.geteuid() != 0:
        pytest.fail("this needs root")


@pytest.fixture(scope="session")
def package():
    """The package that `make package` has built."""
    (package,) = (ROOT / "target/debian").glob("dyndata_*.deb")
    return package
