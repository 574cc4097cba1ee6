"""`cmake --install` puts programs, units, users and directories where systemd and people look."""

import subprocess

from conftest import BIN, SANITIZED

import pytest


@pytest.mark.skipif(SANITIZED, reason="what is installed is the release build")
def test_install(tmp_path):
    build = BIN.parent
    subprocess.run(["cmake", "--install", str(build), "--prefix", str(tmp_path)],
                   check=True, capture_output=True)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {
        "bin/glmd", "bin/glmd-coordinator", "bin/glmd-worker",
        "lib/systemd/system/glmd-coordinator.service", "lib/systemd/system/glmd-worker@.service",
        "lib/systemd/system/glmd.target", "lib/sysusers.d/glmd.conf", "lib/tmpfiles.d/glmd.conf",
    } <= files
    version = subprocess.run([str(tmp_path / "bin/glmd"), "--version"], capture_output=True, text=True)
    assert version.returncode == 0 and version.stdout.startswith("glmd ")
