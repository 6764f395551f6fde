from __future__ import annotations

from pathlib import Path

import pytest

from balsam_core.dbdir import settings
from balsam_core.errors import DBDirError, SettingsError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.delenv(settings.DB_PATH_VARIABLE, raising=False)
    return tmp_path


def say(text):
    file = settings.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_places_are_the_users_directories(home):
    assert settings.settings_file() == home / "config/balsam/settings.toml"
    assert settings.default_balsamdb() == home / "share/balsam/default_balsamdb"


def test_without_any_word_the_default_is_meant(home):
    resolved = settings.resolve_db_path()
    assert (resolved.path, resolved.source) == (home / "share/balsam/default_balsamdb", "default")


def test_argument_beats_environment_beats_settings(home, monkeypatch):
    say('default_db_path = "~/from-settings"')
    resolved = settings.resolve_db_path()
    assert (resolved.path, resolved.source) == (home / "from-settings", "settings")
    assert "settings.toml" in resolved.origin
    monkeypatch.setenv("BALSAM_DB_PATH", "~/from-environment")
    resolved = settings.resolve_db_path()
    assert (resolved.path, resolved.origin) == (home / "from-environment", "BALSAM_DB_PATH")
    resolved = settings.resolve_db_path(Path("~/from-argument"))
    assert (resolved.path, resolved.origin) == (home / "from-argument", "--db")


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_environment_variable_says_nothing(monkeypatch, empty):
    monkeypatch.setenv("BALSAM_DB_PATH", empty)
    assert settings.resolve_db_path().source == "default"


def test_settings_are_not_read_when_they_don_t_matter(home):
    say("garbage")
    assert settings.resolve_db_path("~/x").path == home / "x"


def test_empty_argument_is_an_error():
    with pytest.raises(DBDirError, match="empty"):
        settings.resolve_db_path("")


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "default_db_path = 7",
        'default_db_path = ""',
        'default_db_path = "relative/path"',
        'default_db_path = "~no-such-user-here/x"',
        'default_db_path = "/a\\u0000b"',
        'defualt_db_path = "/x"',
        "x = " + "[" * 20_000,
    ],
)
def test_garbage_is_one_line_that_names_the_file(text):
    say(text)
    with pytest.raises(SettingsError) as caught:
        settings.resolve_db_path()
    assert "\n" not in str(caught.value)
    assert str(settings.settings_file()) in str(caught.value)


def test_unreadable_settings_name_the_file():
    settings.settings_file().mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"settings\.toml can't be read"):
        settings.default_db_path()


def test_settings_not_in_utf8(home):
    say("")
    settings.settings_file().write_bytes(b'default_db_path = "/\xff"')
    with pytest.raises(SettingsError):
        settings.default_db_path()
