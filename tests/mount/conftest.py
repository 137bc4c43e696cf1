# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run the whole program. $LLBFS_BIN is what they test.

They need root and /dev/fuse, and skip without; what else they need (docker-registry, skopeo, umoci)
must be there.
"""
import os
import shutil
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import listing  # noqa: E402
import program  # noqa: E402
import servers  # noqa: E402
from registry import Registry  # noqa: E402

DATA = os.path.join(os.path.dirname(HERE), "data")


def pytest_collection_modifyitems(items):
    why = "needs root" if os.geteuid() else None if os.path.exists("/dev/fuse") else "no /dev/fuse"
    if why:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=why))


def new_folder():
    return tempfile.mkdtemp(prefix="llbfs-e2e-")  # short: Unix sockets lie below it


def remove_folder(path):
    program.clear_mounts(path)

    def gone_is_fine(function, name, why):
        # a server in the background may still tidy up
        if not isinstance(why[1], FileNotFoundError):
            raise why[1]

    shutil.rmtree(path, onerror=gone_is_fine)


@pytest.fixture
def work():
    """A folder for one test, gone with everything that is mounted below it."""
    path = new_folder()
    yield path
    remove_folder(path)


@pytest.fixture(scope="module")
def shared():
    """The same for what the tests of one file use together and do not change."""
    path = new_folder()
    yield path
    remove_folder(path)


@pytest.fixture
def llbfs(work):
    p = program.Program(work)
    yield p
    p.close()
    reports = p.sanitizer_reports()
    assert not reports, reports[0]


@pytest.fixture
def serve():
    """serve({name: layout folder}, **options) starts a tests/registry.py."""
    started = []

    def start(layouts, **options):
        started.append(Registry(layouts, **options).start())
        return started[-1]

    yield start
    for r in started:
        r.stop()


@pytest.fixture
def docker_registry(work):
    """The real one, empty (skopeo would push again what it has there, in whatever encoding)."""
    with servers.DockerRegistry(f"{work}/registry") as r:
        yield r


@pytest.fixture(scope="session")
def expected():
    """What every layout in tests/data/formats holds."""
    return listing.of_expected(f"{DATA}/formats/expected.jsonl")


@pytest.fixture(scope="session")
def formats():
    """formats(name): a complete layout of that encoding."""
    sys.path.insert(0, f"{DATA}/formats")
    import complete

    folder = new_folder()

    def get(name):
        path = f"{folder}/{name}"
        if not os.path.isdir(path):
            complete.complete(name, path)
        return path

    yield get
    remove_folder(folder)
