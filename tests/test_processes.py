"""Processes that a run starts end with it, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sami import processes

# A program that starts another one, says its number and waits.
PARENT = """
import subprocess, sys, time
from sami.processes import end_with_parent
child = subprocess.Popen(["sleep", "60"], start_new_session=True, preexec_fn=end_with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""


def ends(pid: int, seconds: float = 20.0) -> bool:
    for _ in range(int(seconds * 20)):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a child that its parent ended")
def test_a_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it runs
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ends(child)


def test_what_a_stopped_process_started_ends_too():
    command = ["sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    processes.stop(process, seconds=0.2)
    assert process.returncode == -signal.SIGKILL
    assert ends(grandchild)
    processes.stop(process)  # a second time does nothing
