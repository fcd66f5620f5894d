import sys

import pytest

from vggkit.paths import find_home, is_offline


def test_homes(monkeypatch, tmp_path):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    assert find_home() == tmp_path / "home"
    monkeypatch.delenv("VGGKIT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert find_home() == tmp_path / "vggkit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_home().parts[-3:] == ("Library", "Caches", "vggkit")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert find_home() == tmp_path / "Local" / "vggkit"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("on", True), ("", False), ("0", False)])
def test_offline(monkeypatch, value, offline):
    monkeypatch.setenv("VGGKIT_OFFLINE", value)
    assert is_offline() == offline
