"""A stand-in for nvidia-cuda-mps-control, run as a script: the v2 shell on standard input, state in files.

``control`` in the pipe directory is the live daemon; the stand-in libcuda signs clients in to ``clients``.
FAKE_MPS: "refuse" (-d fails), "mute" (commands hang), "silent" (-d starts nothing), "fault",
"stubborn" (no client is ended).
"""

import os
import signal
import sys
from pathlib import Path
from typing import TextIO

PIPE = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
MODE = os.environ.get("FAKE_MPS", "")
SERVER = 4242


def main() -> int:
    with (Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]) / "calls").open("a") as calls:
        return start() if sys.argv[1:] == ["-d"] else shell(calls)


def start() -> int:
    if MODE == "refuse":
        print("Failed to start: insufficient permissions", file=sys.stderr)
        return 1
    if (PIPE / "control").exists():
        print("An instance of this daemon is already running")
        return 1
    forbidden = {"CUDA_VISIBLE_DEVICES", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"} & os.environ.keys()
    assert not forbidden, f"the daemon must not inherit {forbidden}"
    if MODE != "silent":
        (PIPE / "control").write_text("100.0")
    return 0


def shell(calls: TextIO) -> int:
    if MODE == "mute":
        signal.pause()
    if not (PIPE / "control").exists() or MODE == "silent":
        print("Cannot find MPS control daemon process")
        return 1
    for line in sys.stdin:
        calls.write(line)
        print(answer(*line.split()))
    return 0


def answer(command: str, *rest: str) -> str:
    clients = signed_in()
    match command, rest:
        case "get_default_active_thread_percentage", ():
            return (PIPE / "control").read_text()
        case "set_default_active_thread_percentage", (percent,):
            (PIPE / "control").write_text(f"{float(percent)}")
            return f"{float(percent)}"
        case "get_server_list", ():
            return str(SERVER) if clients else ""
        case "get_server_status", (server,) if int(server) == SERVER:
            return "FAULT" if MODE == "fault" else "ACTIVE"
        case "get_client_list", (server,) if int(server) == SERVER:
            return "\n".join(map(str, clients))
        case "terminate_client", (server, client) if int(server) == SERVER:
            return "0" if int(client) in clients and MODE != "stubborn" else "1"
        case "quit", ():
            (PIPE / "control").unlink()
            return "\n"
    return f"Invalid command: {command}"


def signed_in() -> list[int]:
    try:
        pids = {int(pid) for pid in (PIPE / "clients").read_text().split()}
    except FileNotFoundError:
        return []
    return [pid for pid in sorted(pids) if Path(f"/proc/{pid}").exists()]


if __name__ == "__main__":
    sys.exit(main())
