"""Wrong input at every command: one error that says what, where and what to do, and the exit code of its kind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import typer

from fedlora import errors
from fedlora.cli import app
from fedlora.cli.ends import DEBUG, Group, run
from fedlora.config import RunConfig, parse_section
from fedlora.errors import ConfigError, ExitCode, FedLoRAError, Terminated
from fedlora.runs.folder import RunFolder

ROW = {
    "round": 0, "test_accuracy": 0.5, "test_loss": 1.0, "train_loss": None, "clients_accuracy": None, "uplink_bytes": 0,
    "downlink_bytes": 0, "clients_selected": 0, "clients_failed": 0, "wall_time_s": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders of every wrong kind."""
    place = tmp_path_factory.mktemp("place")
    (place / "file").write_text("hello\n")
    (place / "folder").mkdir()
    (place / "folder" / "thesis.tex").touch()
    (place / "empty").mkdir()
    (place / "empty.csv").touch()
    (place / "study.json").write_text("{}")
    (place / "syntax.toml").write_text("seed = = 3\n")
    (place / "latin.toml").write_bytes(b"seed = 3 # \xe9\n")
    (place / "types.toml").write_text("model = 3\n[data]\nname = [1]\n")
    for name in ("run", "newer", "older", "broken"):
        (place / name).mkdir()
        (place / name / "config.toml").write_text(RunConfig().to_toml())
        (place / name / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    for name in ("newer", "older"):
        (place / name / "config.toml").write_text("future = 1\n" + RunConfig().to_toml())
    (place / "older" / "environment.json").write_text('{"packages": {"fedlora": "0.0.1"}}')
    (place / "broken" / "config.toml").write_text("seed = = 3\n")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them to work in."""
    monkeypatch.delenv(DEBUG, raising=False)
    folder = tmp_path / "place"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


WRONG = [
    # files
    ("simulate nowhere.toml", 2, "there is no run file nowhere.toml. Check the path"),
    ("simulate folder", 2, "the run file folder cannot be read: it is a folder. Give a TOML file"),
    ("simulate syntax.toml", 2, "the run file syntax.toml is not valid TOML: Invalid value (at line 1, column 8)"),
    ("simulate latin.toml", 2, "cannot be read: it is not text in UTF-8 (byte 11)"),
    ("simulate types.toml", 2, "model = 3: this is a section of keys. Write model.name=VALUE"),
    ("compare folder", 2, "the compare file folder cannot be read: it is a folder"),
    ("train-policy latin.toml", 2, "it is not text in UTF-8"),
    ("doctor syntax.toml", 2, "not valid TOML"),
    # keys and values
    ("simulate seed=abc", 2, "seed = 'abc': give a whole number"),
    ("doctor seed=-1", 2, "seed = -1: give 0 or more"),
    ("record-response training.lr=0", 2, "training.lr = 0: give more than 0"),
    ("emulate rounds=1.5", 2, "rounds = 1.5: give a whole number"),
    ("simulate data.alpha=nan", 2, "data.alpha = nan: give a finite number"),
    ("simulate data.test_fraction=1", 2, "data.test_fraction = 1: give less than 1"),
    ("simulate evaluation.clients=perhaps", 2, "evaluation.clients = 'perhaps': give true or false"),
    ("simulate model.name=", 2, "model.name = '': give a text that is not empty"),
    ("simulate data.name=3", 2, "data.name = 3: give a text"),
    ("simulate output.log=wandb", 2, "output.log = 'wandb': give a list"),
    ("simulate output.log=['wand']", 2, "unknown value 'wand' for output.log.0. Did you mean 'wandb'?"),
    ("simulate world.options=3", 2, "give keys under it: world.options.KEY=VALUE"),
    ("compare episodes=x", 2, "episodes = 'x': give a whole number"),
    ("compare policies.greedy.optoins.price=1", 2, "Did you mean 'policies.greedy.options'?"),
    ("train-policy nosuch=1", 2, "unknown key 'nosuch'. Known: env, iterations"),
    ("deploy init new --host localhost clients=x", 2, "clients = 'x': give a whole number"),
    ("simulate seed=1 types.toml", 2, "'types.toml' is not an override. Write key=value"),
    # names, options and devices: before anything is loaded
    ("simulate world.options.foo=1", 2, "world.options needs world.name, for example world.name=umi-indoor"),
    ("doctor world.options.clients=3", 2, "world.options needs world.name, for example world.name=umi-indoor"),
    ("simulate world.name=umi-indor", 2, "unknown world 'umi-indor'. Did you mean 'umi-indoor'?"),
    ("simulate world.name=ideal world.options.foo=1", 2, "unknown key 'world.options.foo'"),
    ("simulate policy.name=ful", 2, "unknown policy 'ful'. Did you mean 'full'?"),
    (
        "simulate policy.options.foo=1",
        2,
        "policy.options do not fit policy.name = 'full': got an unexpected keyword argument 'foo'",
    ),
    ("simulate policy.name=fixed", 2, "policy.options do not fit policy.name = 'fixed': missing a required argument: 'rank'"),
    ("simulate aggregator.options.foo=1", 2, "aggregator.options do not fit aggregator.method = 'ravan'"),
    ("simulate device=cuda:99", 2, "device = 'cuda:99'"),
    ("doctor device=warp", 2, "device = 'warp' is not a device. Use auto, cpu"),
    # the command line itself
    ("simulat", 2, "unknown command 'simulat'. Did you mean 'simulate'? See `fedlora --help`"),
    ("training-policy", 2, "Did you mean 'train-policy'?"),
    ("assets frobnicate", 2, "unknown command 'frobnicate'. Known: fetch, list. See `fedlora assets --help`"),
    ("deploy lits", 2, "unknown command 'lits'. Did you mean 'list'? See `fedlora deploy --help`"),
    ("simulate --frmat json", 2, "no such option '--frmat'. Did you mean '--format'? See `fedlora simulate --help`"),
    ("simulate --format yaml", 2, "invalid value for '--format': 'yaml' is not one of 'text', 'json'."),
    ("export run", 2, "missing argument 'OUT'. See `fedlora export --help`"),
    ("methods too many", 2, "unexpected extra arguments"),
    ("watch run --timeout -1", 2, "invalid value for '--timeout': -1.0 is not in the range x>=0."),
    ("node", 2, "missing option '--superlink'."),
    ("serve", 2, "missing option '--deployment'."),
    ("deploy init new --host localhost --port 99999", 2, "99999 is not in the range"),
    # folders
    ("simulate --out file", 5, "file is a file, not a folder. Choose another --out"),
    ("simulate --out folder", 5, "folder already holds other files"),
    ("simulate --out run", 5, "run already holds a run. Go on with it by --resume run"),
    ("simulate --resume folder", 5, "folder holds no run (no config.toml in it)"),
    ("simulate --resume newer", 5, "newer/config.toml is not what a run wrote: unknown key 'future'"),
    ("simulate --resume older", 5, "is not what a run of this version ("),
    ("simulate --resume broken", 5, "is not valid TOML"),
    ("watch file", 5, "file is a file, not the folder of a run"),
    ("watch nowhere --timeout 0", 1, "no run began in nowhere within 0 s"),
    ("watch newer --timeout 0", 5, "newer/config.toml is not what a run wrote"),
    ("report nowhere", 5, "nowhere: there is no such folder or file"),
    ("report file", 5, "file cannot be read as JSON: it is not JSON (Expecting value, line 1)"),
    ("report empty", 5, "empty holds nothing to report on"),
    ("train-policy --resume run", 5, "run/config.toml is not what a training wrote"),
    ("train-policy --resume nowhere", 5, "nowhere holds no training"),
    ("report run --out run/metrics.jsonl", 2, "run/metrics.jsonl would write over metrics.jsonl of the run in "),
    ("report run --format json --out run/environment.json", 2, "would write over environment.json of the run in "),
    ("report run --format png --out run/checkpoints", 2, "would write over checkpoints of the run in "),
    (
        "report run --out page.png",
        2,
        "with --format html give a file name that ends in .html; figures come by --format png or svg",
    ),
    ("report run --out empty", 2, "with --format html give a file name that ends in .html"),
    ("report run --format json --out table.csv", 2, "with --format json give a file name that ends in .json"),
    ("report study.json --format json --out study.json", 2, "--out study.json is the file to report on"),
    ("deploy add-node folder a", 5, "folder holds no deployment (no deployment.toml in it). Make one: fedlora deploy init"),
    ("deploy list file", 5, "file holds no deployment"),
    ("deploy revoke nowhere a", 5, "nowhere holds no deployment"),
    ("deploy renew nowhere", 5, "nowhere holds no deployment"),
    ("deploy init file --host localhost", 5, "file is a file, not a folder"),
    ("deploy init new --host bad_host!", 2, "'bad_host!' is neither a name nor an address"),
    ("deploy init new --host localhost --bind 1.2.3.4.5", 2, "--bind 1.2.3.4.5: give an address of this machine"),
    ("serve --deployment folder", 5, "folder holds no deployment"),
    # names
    ("world umi-indor", 2, "unknown world 'umi-indor'. Did you mean 'umi-indoor'?"),
    ("world seed=3", 2, "'seed=3' changes a world, but which?"),
    ("assets fetch minilm", 2, "unknown packaged asset 'minilm'. Did you mean 'minilm-l6'?"),
    ("doctor --edge --superlink somewhere", 1, ""),
    ("doctor --edge foo=1", 2, "--edge checks a device and takes no run: leave out foo=1"),
    ("doctor --edge types.toml rounds=3", 2, "--edge checks a device and takes no run: leave out types.toml rounds=3"),
]


@pytest.mark.parametrize(("line", "code", "says"), WRONG, ids=[line for line, _, _ in WRONG])
def test_one_error_and_its_exit_code(line: str, code: int, says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert run(app, line.split()) == code
    shown = capsys.readouterr()
    err = shown.err
    assert "loading" not in shown.out
    if says:
        assert err.startswith("error: ") and says in err and "Traceback" not in err
        assert len(err.splitlines()) <= 5, "a file of another kind is wrong in every line; the first few are enough"
    assert sorted(place.rglob("*")) == before, "nothing was written"


def test_a_command_that_is_made_of_others_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["assets"]) == ExitCode.config
    shown = capsys.readouterr()
    assert "Usage: fedlora assets" in shown.out + shown.err and "error" not in shown.err


# -- what nobody foresaw ----------------------------------------------------------------------------------------------


def _app(failure: BaseException) -> typer.Typer:
    other = typer.Typer(pretty_exceptions_enable=False)

    @other.command()
    def command() -> None:
        raise failure

    return other


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (KeyError("lost"), ExitCode.bug, "fedlora did not foresee this: KeyError: 'lost'. Please report it"),
        (MemoryError(), ExitCode.bug, "fedlora did not foresee this: MemoryError. Please report it"),
        (PermissionError(13, "Permission denied", "/root/x"), ExitCode.failed, "the system refuses: Permission denied (/root/x)"),
        (ConfigError("no"), ExitCode.config, "no"),
        (click.Abort(), ExitCode.interrupted, "nothing was answered"),
        (KeyboardInterrupt(), ExitCode.interrupted, None),
    ],
)
def test_every_end_has_its_code(
    failure: BaseException, code: int, says: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    assert run(_app(failure), []) == code
    err = capsys.readouterr().err
    assert err == "" if says is None else err.startswith(f"error: {says}") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "value", "traced"),
    [
        (["simulate", "seed=x"], None, False),
        (["simulate", "seed=x"], "0", False),
        (["simulate", "seed=x"], "1", True),
        (["--debug", "simulate", "seed=x"], None, True),
        (["simulate", "seed=x", "--debug"], None, True),
        (["simulate", "--nosuch", "--debug"], None, True),
    ],
)
def test_the_trace_is_there_on_request(
    arguments: list[str], value: str | None, traced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG, value or "")  # so that what `run` sets is taken back
    assert run(app, arguments) == ExitCode.config
    err = capsys.readouterr().err
    assert ("Traceback" in err) is traced
    assert err.splitlines()[-1].startswith("error: ")


def test_signals_are_as_they_were_and_sigterm_ends_in_order() -> None:
    tidied = []
    commands = typer.Typer(cls=Group, pretty_exceptions_enable=False)

    @commands.command("wait")
    def wait() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            tidied.append(True)
            raise

    @commands.command("other")
    def other() -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    assert before == signal.SIG_DFL
    assert run(commands, ["wait"]) == ExitCode.terminated == 128 + signal.SIGTERM
    assert tidied == [True] and signal.getsignal(signal.SIGTERM) == before
    assert issubclass(Terminated, KeyboardInterrupt) and ExitCode.interrupted == 128 + signal.SIGINT


# -- output that cannot be written ------------------------------------------------------------------------------------


def _fedlora(line: str, shell: str = "{}", **environment: str) -> subprocess.CompletedProcess[str]:
    command = shell.format(f"'{sys.executable}' -m fedlora {line}")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], env={**os.environ, **environment},
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("line", ["assets list", "assets list --format json", "--version"])
def test_a_full_disk_behind_stdout_is_one_error(line: str) -> None:
    done = _fedlora(line, "{} > /dev/full")
    assert done.returncode == ExitCode.failed
    assert done.stderr == "error: the system refuses: No space left on device. Add --debug to see what was tried\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    done = _fedlora("assets list --format json", "{} | (exec <&-; sleep 3)")
    assert done.returncode in (0, ExitCode.failed) and done.stderr == ""
    assert _fedlora("assets list", "{} >&-").stderr == ""


def test_a_terminal_without_utf_8_and_a_narrow_one() -> None:
    done = _fedlora("assets list", PYTHONIOENCODING="ascii", COLUMNS="20", NO_COLOR="1", TERM="dumb")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii()
    assert "trec-6" in done.stdout and "\x1b" not in done.stdout
    refused = _fedlora("simulate é=3", PYTHONIOENCODING="ascii")
    assert refused.returncode == 2 and refused.stderr.startswith("error: unknown key '\\xe9'.")


# -- words and numbers that other places repeat -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shell.md", "cli.md"])
def test_the_table_of_exit_codes_is_the_codes_own(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and line.split()[1].isdigit()]
    assert rows == [f"| {code.value} | {code.meaning} |" for code in ExitCode]


def test_every_error_of_the_tree_has_one_of_them() -> None:
    import fedlora.deploy.edge_check
    import fedlora.runs.follow  # noqa: F401 - they define errors

    def tree(error: type[FedLoRAError]) -> list[type[FedLoRAError]]:
        return [error, *(below for child in error.__subclasses__() for below in tree(child))]

    found = tree(FedLoRAError)
    assert len(found) > 10
    assert all(isinstance(error.exit_code, ExitCode) for error in found), found
    assert {error.exit_code for error in found} == set(ExitCode) - {
        ExitCode.done, ExitCode.bug, ExitCode.interrupted, ExitCode.terminated,
    }  # fmt: skip


def test_reasons_are_words() -> None:
    assert errors.reason(IsADirectoryError(21, "Is a directory", "x")) == "it is a folder"
    assert errors.reason(OSError(28, "No space left on device", "x")) == "No space left on device"
    assert errors.reason(KeyError("horizon")) == "'horizon' is not in it"


def test_many_mistakes_are_not_all_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section(RunConfig, {f"key{number}": 1 for number in range(9)})
    assert len(str(caught.value).splitlines()) == 5 and str(caught.value).endswith("... and 5 more of this kind")


def test_a_run_folder_says_which_version_wrote_it(place: Path) -> None:
    with pytest.raises(
        errors.RunFolderError, match=r"of this version \(.*; it was version 0\.0\.1\) wrote: unknown key 'future'"
    ):
        RunFolder.open(place / "older")
