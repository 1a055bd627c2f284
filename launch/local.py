"""Trains one run with several processes on this machine, as a rehearsal for a cluster.

    python launch/local.py --processes=2 --config=configs/fish.py:smoke --workdir=DIR [--config.key=value ...]

All arguments but `--processes` go to jaxmarks.main. The output of process 0 is shown as it is, that of the others with
their number in front. If one process is lost the others end as well, and the exit status is the first that is not 0, in
the order of the processes. The same command resumes the run.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading


def main(arguments: list[str] | None = None) -> int:
    """Runs the processes; returns the first exit status that is not 0 (128 + n after signal n), or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    options, rest = parser.parse_known_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes={options.processes}: give at least 1")
    with socket.socket() as probe:  # the port is free only at this moment, which is enough on one machine
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "jaxmarks.main",
        f"--processes={options.processes}",
        f"--coordinator={coordinator}",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    processes = [
        subprocess.Popen(
            [*command, f"--process={i}", *rest], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # else Ctrl-C would reach it twice, from the terminal and from the handler below
        )
        for i in range(options.processes)
    ]  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: [process.send_signal(signum) for process in processes])
    echoes = [threading.Thread(target=echo, args=each) for each in enumerate(processes)]
    for thread in echoes:
        thread.start()
    statuses = [process.wait() for process in processes]
    for thread in echoes:
        thread.join()
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)


def echo(number: int, process: subprocess.Popen) -> None:
    """Prints a process's output, with the process's number in front unless it is 0."""
    for line in process.stdout or ():
        print(f"[{number}] {line}" if number else line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
