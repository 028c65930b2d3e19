"""Options: their sources, their priority, and what becomes of bad ones."""

import pytest

from mosec import args, env


def test_the_defaults_are_those_of_mosec() -> None:
    assert args.parse([]) == args.Options(
        address="0.0.0.0",
        port=8000,
        timeout=3000,
        wait=10,
        capacity=1024,
        max_request_bytes=10485760,
        namespace="mosec_service",
        log_level="info",
        compression=False,
        dry_run=False,
        reload=False,
        path=None,
    )


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSEC_PORT", "1234")
    monkeypatch.setenv("MOSEC_TIMEOUT", "99")
    options = args.parse(["--port", "4321"])
    assert (options.port, options.timeout) == (4321, 99)


def test_unknown_options_are_ignored_and_known_ones_may_be_shortened() -> None:
    options = args.parse(["positional", "--mine", "x", "--capa", "5", "--path", "/tmp/x"])
    assert (options.capacity, options.path) == (5, "/tmp/x")


@pytest.mark.parametrize(
    ("name", "value", "field", "default"),
    [("PORT", "x", "port", 8000), ("TIMEOUT", "0", "timeout", 3000), ("LOG_LEVEL", "loud", "log_level", "info")],
)
def test_a_variable_that_does_not_convert_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, default: object
) -> None:
    monkeypatch.setenv(f"MOSEC_{name}", value)
    with pytest.warns(RuntimeWarning, match=f"MOSEC_{name}"):
        assert getattr(args.parse([]), field) == default


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSEC_PORT", "")
    assert args.parse([]).port == 8000


@pytest.mark.parametrize(
    "argv", [["--port", "abc"], ["--port", "70000"], ["--timeout", "0"], ["--log-level", "loud"], ["--capacity", "-1"]]
)
def test_a_bad_option_ends_the_program(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        args.parse(argv)
    assert exit_.value.code == 2


@pytest.mark.parametrize("option", ["dry-run", "compression"])
def test_switches(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    field = option.replace("-", "_")
    assert getattr(args.parse([f"--{option}"]), field) is True
    assert getattr(args.parse([f"--{option[:4]}"]), field) is True, "shortened"
    for text, value in (("true", True), ("False", False), ("0", False), ("", False)):
        monkeypatch.setenv(f"MOSEC_{field.upper()}", text)
        assert getattr(args.parse([]), field) is value, text


def test_the_variables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSEC_PORT", "81")
    monkeypatch.setenv("MOSEC_NAMESPACE", "mine")
    monkeypatch.setenv("MOSEC_WAIT", "5")
    assert vars(env.get_env_namespace()) == {"port": 81, "namespace": "mine"}
    monkeypatch.setenv("OTHER_PATH", "/x")
    assert vars(env.get_env_namespace("OTHER_")) == {"path": "/x"}


@pytest.mark.filterwarnings("ignore:`--debug`:DeprecationWarning")
@pytest.mark.parametrize(("value", "level"), [("true", "debug"), ("1", "debug"), ("false", "info"), ("0", "info")])
def test_debug_by_environment_is_a_boolean(monkeypatch: pytest.MonkeyPatch, value: str, level: str) -> None:
    monkeypatch.setenv("MOSEC_DEBUG", value)
    assert args.parse([]).log_level == level


@pytest.mark.filterwarnings("ignore:`--debug`:DeprecationWarning")
def test_debug_wins_over_the_level() -> None:
    assert args.parse(["--debug", "--log-level", "error"]).log_level == "debug"


@pytest.mark.parametrize(("argv", "value"), [(["--debug"], ""), ([], "true")])
def test_the_old_debug_option_warns(monkeypatch: pytest.MonkeyPatch, argv: list[str], value: str) -> None:
    monkeypatch.setenv("MOSEC_DEBUG", value)
    with pytest.warns(DeprecationWarning, match="--log-level debug"):
        assert args.parse(argv).log_level == "debug"


def test_the_old_wait_option_warns() -> None:
    with pytest.warns(DeprecationWarning, match="max_wait_time"):
        assert args.parse(["--wait", "20"]).wait == 20
    with pytest.warns(DeprecationWarning, match="max_wait_time"):
        assert args.parse(["--wait", "0"]).wait == 0, "no window"


@pytest.mark.parametrize(
    ("argv", "level"),
    [
        (["--log-level", "error"], "error"),
        (["--help"], "info"),
        (["--log-level", "loud"], "info"),
        (["--debug"], "debug"),
    ],
)
def test_the_level_alone_never_ends_the_program(argv: list[str], level: str) -> None:
    assert args.log_level(argv) == level
