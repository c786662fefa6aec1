"""How a command ends that is stopped, or that the system refuses something."""

import errno
import signal
import subprocess
import sys

import pytest

from sami.commands import ending
from sami.errors import InputError


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_leaves_nothing_half_written_and_says_how_to_continue(tmp_path, number, code):
    script = """if True:
        import sys, time
        from pathlib import Path
        from sami.commands import ending
        from sami.files import replacing
        with ending.explained(), replacing(Path(sys.argv[1]) / "model") as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [path.name for path in tmp_path.iterdir()] == [".model.tmp"]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("You passed [/red]."), "sami: You passed [/red].\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (RuntimeError("write failed: No space left on device (os error 28)"), "The disk is full"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "Give a shorter path."),
        (PermissionError(errno.EACCES, "Permission denied", "/locked/x"), "/locked/x"),
    ],
)
def test_what_a_person_can_mend_is_a_message_and_exit_code_2(error, words, capsys):
    with pytest.raises(SystemExit) as end, ending.explained():
        raise error
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert words in message
    assert len(message) < 500


def test_a_defect_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a defect"), ending.explained():
        raise RuntimeError("a defect")
