"""Several processes on this machine that train one run together: a rehearsal of what a cluster does.

    python launch/local.py --processes=2 --config=configs/fish.py:smoke --workdir=DIR [--config.key=value ...]

All arguments but `--processes` are those of jaxmarks.main. What process 0 says appears as it is, that of the others with
their number before it. Where one is lost the others end, and the exit status is theirs; the same command resumes.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading


def main(arguments: list[str] | None = None) -> int:
    """Runs the processes; returns the first exit status that is not 0, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    options, rest = parser.parse_known_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes={options.processes}: give at least 1")
    with socket.socket() as free:  # the port is free for the moment, which is what one machine needs
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "jaxmarks.main",
        f"--processes={options.processes}",
        f"--coordinator={coordinator}",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    running = [
        subprocess.Popen(
            [*command, f"--process={i}", *rest], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for i in range(options.processes)
    ]  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda sent, frame: [process.send_signal(sent) for process in running])
    echoes = [threading.Thread(target=echo, args=each) for each in enumerate(running)]
    for thread in echoes:
        thread.start()
    statuses = [process.wait() for process in running]
    for thread in echoes:
        thread.join()
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)


def echo(number: int, process: subprocess.Popen) -> None:
    """Passes on what a process says."""
    for line in process.stdout or ():
        print(f"[{number}] {line}" if number else line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
