"""Builds deploy/Containerfile with buildah and runs the image, without a registry and an engine.

The build image is a Debian by debootstrap with the Rust toolchain of this machine. Programs run in
chroot isolation, with the network of this machine. The tests need root. With PROFILE=release they
build the profile of releases; the default builds faster.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.processes import ROOT, STOP_SECONDS, wait_until

PROFILE = os.environ.get("PROFILE", "dev")
WORK = ROOT / ".tools/image"
BASE = WORK / "base"
BUILD_SECONDS = 3600
USER = 65532
# Chroot isolation has this machine's network, where the usual ports may be in use.
SETTINGS = [
    "--env=DYNDATA_LISTEN=127.0.0.1:50851",
    "--env=DYNDATA_ADMIN_LISTEN=127.0.0.1:50852",
    "--env=DYNDATA_ADDR=http://localhost:50851",
]


def buildah(*arguments):
    """A command of buildah with its own storage, so that this machine's images stay as they are."""
    storage = [f"--root={WORK}/storage", f"--runroot={WORK}/run", "--storage-driver=overlay"]
    return ["buildah", *storage, *map(str, arguments)]


def said(*arguments):
    """What buildah prints; it must succeed."""
    done = subprocess.run(
        buildah(*arguments), stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def container(root):
    """A container of the image."""
    build_image()
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    registry.mkdir(parents=True, exist_ok=True)
    # Only the docker format has a HEALTHCHECK. The crates of this machine are not downloaded again.
    said(
        "build",
        "--isolation=chroot",
        "--format=docker",
        f"--file={ROOT}/deploy/Containerfile",
        "--tag=dyndata",
        "--build-arg=BUILD_IMAGE=localhost/build-base",
        f"--build-arg=PROFILE={PROFILE}",
        f"--volume={registry}:/root/.cargo/registry",
        ROOT,
    )
    container = said("from", "dyndata")
    yield container
    said("rm", container)


def build_image():
    """Makes the image that the build starts from."""
    if not (BASE / "complete").exists():
        shutil.rmtree(BASE, ignore_errors=True)
        packages = "--include=ca-certificates,gcc,libc6-dev"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", BASE]
        subprocess.run(command, timeout=BUILD_SECONDS, check=True)
        (BASE / "complete").touch()
    known = subprocess.run(
        buildah("inspect", "--type=image", "build-base"), capture_output=True, timeout=60
    )
    if known.returncode == 0:
        return
    container = said("from", "scratch")
    said("copy", "--quiet", container, BASE, "/")
    toolchain = subprocess.run(
        ["rustc", "--print", "sysroot"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    # The rest of the toolchain is documentation, which is most of it.
    for folder in ("bin", "lib"):
        said("copy", "--quiet", container, f"{toolchain}/{folder}", f"/usr/local/{folder}")
    said("commit", "--quiet", container, "build-base")
    said("rm", container)


def test_the_image_runs_as_an_unprivileged_user(container):
    assert said("inspect", "--format={{.Docker.Config.User}}", container) == f"{USER}:{USER}"


def test_the_image_has_a_health_check(container):
    check = said("inspect", "--format={{.Docker.Config.Healthcheck.Test}}", container)
    assert "/usr/bin/dyndata health" in check


def test_the_image_has_no_shell(container, figures):
    root = Path(said("mount", container))
    assert not any((root / shell).exists() for shell in ("bin/sh", "usr/bin/sh"))
    paths = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    figures.append(f"the image: {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB")


def test_the_image_serves_is_healthy_and_stops(container):
    run = buildah("run", "--isolation=chroot", *SETTINGS, container, "--", "/usr/bin/dyndata")
    log = WORK / "serve.log"
    with log.open("wb") as output:
        serving = subprocess.Popen([*run, "serve"], stdout=output, stderr=output)
    try:
        # By a name, so that the image's resolver is used as well.
        healthy = lambda: subprocess.run([*run, "health"], timeout=60).returncode == 0
        wait_until(healthy, "not healthy")
        os.kill(server_pid(), signal.SIGTERM)
        assert serving.wait(2 * STOP_SECONDS) == 0, log.read_text()
    finally:
        serving.terminate()


def server_pid():
    """The process in the container, by its user and its command."""
    command = ["pgrep", "-f", "-u", str(USER), "^/usr/bin/dyndata serve$"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)
