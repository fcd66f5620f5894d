"""Shell completion: tyro's script for all verbs, tried in a real bash."""

import shutil
import subprocess

import pytest

from vggkit.cli import main as cli


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "vggkit.bash"
    path.write_text(run_for_output("bash"), encoding="utf-8")
    return path


def run_for_output(shell):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        cli.main(["--tyro-print-completion", shell])
    assert ended.value.code == 0
    return out.getvalue()


def complete(script, folder, *words):
    """What bash offers for the last of the words."""
    given = " ".join(f"'{word}'" for word in words)
    program = (
        f"source '{script}'; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _tyro_vggkit; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_options_choices_and_files(script, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    assert complete(script, tmp_path, "vggkit", "pre") == ["predict"]
    assert {"train", "doctor", "predict"} <= set(complete(script, tmp_path, "vggkit", ""))
    assert complete(script, tmp_path, "vggkit", "train", "--ep") == ["--epochs"]
    assert complete(script, tmp_path, "vggkit", "train", "--optimizer", "m") == ["muon"]
    # A word that is no option is a file, also behind other arguments.
    assert complete(script, tmp_path, "vggkit", "predict", "digits", "pho") == ["photo.png"]
    assert complete(script, tmp_path, "vggkit", "predict", "digits", "") == ["photo.png"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_offers_files_where_nothing_else_fits(shell):
    found = run_for_output(shell)
    assert "completions or ['__TYRO_COMPLETE_FILES__']" in found  # tyro's text was found and replaced
    assert "vggkit" in found


def test_another_shell_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--tyro-print-completion", "powershell"])
    assert ended.value.code == 2
    assert "{bash,zsh,fish}" in capsys.readouterr().err
