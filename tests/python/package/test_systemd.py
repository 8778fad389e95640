"""Boots a Debian in a container of systemd (systemd-nspawn) without a network, and installs the package.

The unit runs for real: sandbox, credential, notification, watchdog, reload, socket activation,
upgrade, purge. The tests need root. The machine itself need not have booted with systemd.
"""

import shutil
import subprocess

from support.processes import ROOT

MACHINE = ROOT / ".tools/systemd-root"
# inside.sh, which the container runs at the end of its boot, writes its log here.
REPORT = ROOT / ".tools/systemd-report"
INSTALL_SECONDS = 900
BOOT_SECONDS = 180
UNIT = """\
[Unit]
After=redis-server.service
[Service]
Type=oneshot
ExecStart=/bin/bash /root/inside.sh
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=append:/report/log
StandardError=append:/report/log
[Install]
WantedBy=multi-user.target
"""


def test_the_units_in_a_booted_debian(root, package, figures):
    install_debian()
    prepare(package)
    console = (REPORT / "console").open("wb")
    # Changes are lost with the container, so that every run starts from the same state.
    subprocess.run(
        ["systemd-nspawn", "--quiet", f"--directory={MACHINE}", "--volatile=overlay", "--boot"]
        + ["--private-network", "--register=no", "--keep-unit", "--console=read-only"]
        + [f"--bind={REPORT}:/report"],
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        timeout=BOOT_SECONDS,
        check=False,
    )
    log = (REPORT / "log").read_text()
    figures += log.splitlines()
    assert log.splitlines()[-1] == "passed", f"see {REPORT}"


def install_debian():
    complete = MACHINE / "complete"
    if not complete.exists():
        shutil.rmtree(MACHINE, ignore_errors=True)
        packages = "--include=systemd,systemd-sysv,redis-server"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", MACHINE]
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS)
        complete.touch()


def prepare(package):
    """Adds a unit that runs inside.sh at the end of the boot, and then ends the container."""
    shutil.rmtree(REPORT, ignore_errors=True)
    REPORT.mkdir(parents=True)
    shutil.copy(package, MACHINE / "root/dyndata.deb")
    shutil.copy(ROOT / "tests/python/package/inside.sh", MACHINE / "root/inside.sh")
    units = MACHINE / "etc/systemd/system"
    (units / "inside.service").write_text(UNIT)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "inside.service").unlink(missing_ok=True)
    (wanted / "inside.service").symlink_to("../inside.service")
