"""Settings from four sources, and what a wrong one says."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.units import format_duration, format_size, parse_duration
from jobwire_server.host.load_settings import load_settings, unknown_variables
from jobwire_server.host.settings import Settings


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"JOBWIRE_{name.upper()}", raising=False)
    monkeypatch.delenv("JOBWIRE_CONFIG", raising=False)


def test_without_any_source_the_broker_has_its_defaults() -> None:
    settings = load_settings()
    assert settings.broker_options() == BrokerOptions()
    assert settings.listen == "127.0.0.1:50051"


def _other(default: object) -> object:
    """Another value within the range."""
    if isinstance(default, timedelta | float):
        return default * 1.2
    return default - 1 if isinstance(default, int) and not isinstance(default, bool) else default


def test_every_option_of_the_broker_can_be_set() -> None:
    """Each field of the options differs from its default once each setting does."""
    other = {
        name: _other(field.default)
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, timedelta | float | int) and name != "processes"
    }
    other |= {"wait_replicas": 2, "redis_url": "redis://store:6379/0"}
    got, default = load_settings(other).broker_options(), BrokerOptions()
    for mine, theirs in ((got, default), (got.retry, default.retry), (got.limits, default.limits)):
        for field in dataclasses.fields(mine):
            assert getattr(mine, field.name) != getattr(theirs, field.name), field.name


def test_options_have_the_units_that_their_names_say() -> None:
    flags = {"lease": "31s", "max_linger": "2.5ms", "max_payload": "2MiB", "retry_jitter": "0.5"}
    options = load_settings(flags).broker_options()
    assert options.lease_ms == 31_000
    assert options.max_linger_ms == 2.5
    assert options.limits.max_payload_bytes == 2 << 20
    assert options.retry.jitter == 0.5


def test_flags_beat_environment_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "jobwire.toml").write_text('lease = "40s"\ntick = "2s"\nmax_crashes = 9\n')
    monkeypatch.setenv("JOBWIRE_LEASE", "50s")
    monkeypatch.setenv("JOBWIRE_TICK", "3s")
    settings = load_settings({"lease": "60s"})
    assert settings.lease == timedelta(seconds=60)
    assert settings.tick == timedelta(seconds=3)
    assert settings.max_crashes == 9
    assert settings.bookmark == timedelta(seconds=15)


def test_a_file_is_named_by_flag_or_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("max_crashes = 11")
    two.write_text("max_crashes = 12")
    monkeypatch.setenv("JOBWIRE_CONFIG", str(one))
    assert load_settings().max_crashes == 11
    assert load_settings(config=two).max_crashes == 12
    with pytest.raises(ConfigurationError, match=r"no file .*absent.toml, named by --config"):
        load_settings(config=tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"lease": "30"}, "lease, from flag --lease: '30' is not a duration: write it like"),
        ({"lease": "5ms"}, "greater than or equal to 1 second (The lease"),
        ({"max_crashes": 0}, "max_crashes, from flag --max-crashes: input should be greater"),
        ({"max_payload": "1 lot"}, "max_payload, from flag --max-payload: "),
        ({"listen": "50051"}, "'50051' is not HOST:PORT"),
        ({"listen": "h:70000"}, "'h:70000' is not HOST:PORT"),
        ({"durability": "never"}, "'everysec' or 'always'"),
        ({"worker_timeout": "2s"}, "2s is shorter than two heartbeat_interval of 1400ms"),
        ({"heartbeat_interval": "8s"}, "worker_timeout, from default: 7s is shorter than"),
        ({"retry_initial_backoff": "1h"}, "1h is longer than retry_max_backoff of 10m"),
        ({"max_payload": "16MiB"}, "16MiB does not fit into a max_message of 16MiB"),
        ({"tls_cert": "c.pem"}, "tls_key, from default: is needed, because tls_cert is set"),
        ({"tls_client_ca": "c.pem"}, "has no effect without tls_cert"),
        ({"data_dir": ""}, "name a directory"),
        ({"wait_replicas": 1}, "the bundled Valkey has no replicas to wait for: name a store with"),
        ({"wait_replicas": 11}, "less than or equal to 10 (How many replicas of the store"),
        ({"wait_timeout": "5s"}, "less than or equal to 2 seconds (How long the replicas"),
    ],
)
def test_a_wrong_value_is_one_line_with_setting_source_and_remedy(
    flags: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        load_settings(flags)
    assert says in wrong.value.message
    assert "\n" not in wrong.value.message


def test_a_wrong_value_names_the_variable_or_file_that_it_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "jobwire.toml").write_text('tick = "soon"\nleese = "30s"\n')
    monkeypatch.setenv("JOBWIRE_BOOKMARK", "1x")
    with pytest.raises(ConfigurationError) as wrong:
        load_settings()
    assert {line.split(": ")[0] for line in wrong.value.message.splitlines()} == {
        "tick, from jobwire.toml",
        "bookmark, from environment variable JOBWIRE_BOOKMARK",
        "leese in jobwire.toml is not a setting",
    }
    assert "did you mean lease?" in wrong.value.message


def test_a_file_that_is_not_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "jobwire.toml").write_text("lease 30s\n")
    with pytest.raises(ConfigurationError, match=r"jobwire.toml is not valid TOML: .*line 1"):
        load_settings()


def test_a_password_in_a_url_is_not_repeated_by_an_error() -> None:
    with pytest.raises(ConfigurationError) as wrong:
        load_settings({"redis_url": "redis://:hunter2@h", "max_crashes": 0})
    assert "hunter2" not in wrong.value.message


def test_the_data_directory_does_not_depend_on_the_current_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings().data_dir == tmp_path / "jobwire"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert load_settings().data_dir == Path.home() / ".local/share/jobwire"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("500ms", 500),
        ("30s", 30_000),
        ("1h30m", 5_400_000),
        ("1.5s", 1_500),
        ("2d", 172_800_000),
    ],
)
def test_durations_are_read_and_written_back(text: str, ms: int) -> None:
    value = parse_duration(text)
    assert value == timedelta(milliseconds=ms)
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 lightyears", "1h-5m", "1e3s"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("size", "text"), [(1 << 20, "1MiB"), (1536, "1536B"), (3 << 30, "3GiB")])
def test_sizes_are_written_with_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_variables_that_are_nearly_a_setting_are_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOBWIRE_LEESE", "1m")
    monkeypatch.setenv("JOBWIRE_DATADIR", "/data")
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert refused.value.message.splitlines() == [
        "environment variable JOBWIRE_DATADIR is not a setting: did you mean JOBWIRE_DATA_DIR?",
        "environment variable JOBWIRE_LEESE is not a setting: did you mean JOBWIRE_LEASE?",
    ]


def test_variables_that_are_like_no_setting_are_told_apart_from_those_of_clients_and_kubernetes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "JOBWIRE_COLOUR": "blue",
        "JOBWIRE_PORT": "50051",
        "JOBWIRE_TARGET": "localhost:50051",
        "JOBWIRE_TLS": "1",
        "jobwire_lease": "1m",
        # Of a service called jobwire, and of one called jobwire-store.
        "JOBWIRE_SERVICE_HOST": "10.0.0.1",
        "JOBWIRE_SERVICE_PORT_GRPC": "50051",
        "JOBWIRE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "JOBWIRE_STORE_PORT": "tcp://10.0.0.1:6379",
        "JOBWIRE_STORE_SERVICE_PORT": "6379",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings().lease == timedelta(minutes=1)
    assert unknown_variables() == ({}, ["JOBWIRE_COLOUR", "JOBWIRE_PORT"])


def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", _no_account)


def _no_account(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_who_has_no_home_directory_names_a_directory_or_a_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _no_home(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"^data_dir, from default: .* has no home"):
        load_settings()
    assert load_settings({"data_dir": str(tmp_path)}).data_dir == tmp_path
    assert load_settings({"redis_url": "redis://store:6379"}).redis_url


@pytest.mark.parametrize("name", ["data_dir", "tls_cert"])
def test_a_path_with_a_nul_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}, .*NUL"):
        load_settings({"tls_cert": "c", "tls_key": "k", name: "a\0b"})


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:hunter2@h:6379/0\n")
    file.chmod(0o600)
    settings = load_settings({"redis_url_file": str(file)})
    assert settings.redis_url == "redis://:hunter2@h:6379/0"
    assert settings.open_secrets() == []
    file.chmod(0o604)
    (warning,) = settings.open_secrets()
    assert "chmod o=" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"redis://:hunter2@h\nredis://:hunter2@h", "more than one line"),
        (b"redis://:hunter2@h\0", "more than one line"),
        (b"hunter2\xff", "not text"),
        (b"hunter2" * 20_000, "more than 65536 bytes"),
    ],
    ids=["missing", "empty", "blank", "two lines", "control", "binary", "large"],
)
def test_a_file_without_a_secret_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("JOBWIRE_REDIS_URL_FILE", str(file))
    with pytest.raises(ConfigurationError) as wrong:
        load_settings()
    assert wrong.value.message.startswith(
        "redis_url_file, from environment variable JOBWIRE_REDIS_URL_FILE: "
    )
    assert words in wrong.value.message
    assert "hunter2" not in wrong.value.message


def test_a_secret_has_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://h")
    monkeypatch.setenv("JOBWIRE_REDIS_URL", "redis://:hunter2@h")
    with pytest.raises(ConfigurationError, match="set one of both") as wrong:
        load_settings({"redis_url_file": str(tmp_path / "url")})
    assert "hunter2" not in wrong.value.message
