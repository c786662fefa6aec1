"""What a command sets up before it imports torch: allocator and threads, quiet libraries, whether a hub is used."""

import logging
import os
import socket
import sys
from urllib.parse import urlsplit

# Allocator and thread settings that only count at process start: to keep freed memory, and to let waiting threads
# sleep rather than spin, speeds up CPU work.
PROCESS_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=1000000000",
    "TOKENIZERS_PARALLELISM": "false",
}


def start(*, tuned: bool = True, hub: bool = True) -> None:
    """Set up this process for a command that uses torch and transformers.

    Args:
        tuned: restart Python once with `PROCESS_SETTINGS`; what the user set already is kept.
        hub: whether models and data sets may be downloaded.
    """
    if tuned:
        _tune_process()
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's libraries read it when they are imported
    _quiet_libraries()


def hub_answers() -> bool:
    """Whether the hub can be reached, asked once: its own libraries wait for half a minute before they give up."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _tune_process() -> None:
    missing = {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
    if missing and sys.platform == "linux" and sys.argv[0].endswith(("/sami", "/cli.py")):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-P", "-m", "sami.cli", *sys.argv[1:]], {**os.environ, **missing})


def _quiet_libraries() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # sami has progress bars of its own
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # peft imports it, and it warns about a package for kernels that are not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
