"""Joining the other processes of a multi-host job, found in the environment (Cloud TPU, GKE, SLURM, MPI) or in flags.

If a process is missing, `jax.distributed.initialize` times out with a core dump that does not say which one. So a roll
call comes before it: process 0 listens on the coordinator's port, the others report to it, and at the timeout every
process that came is told which ones did not.
"""

import argparse
import contextlib
import os
import socket
import time

from giraffe_jax.config import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed and the flags that go with it."""
    group = parser.add_argument_group("several processes (docs/multihost.md)")
    group.add_argument("--distributed", action="store_true", help="this process is one of several")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; detected on TPU, GKE and SLURM")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes; detected likewise")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this one, from 0; detected likewise")
    group.add_argument("--start-timeout", type=int, default=300, metavar="SECONDS", help="wait for all to start (300)")
    group.add_argument(
        "--heartbeat-timeout", type=int, default=100, metavar="SECONDS", help="until a silent process is lost (100)"
    )


def join(args: argparse.Namespace) -> None:
    """Waits until all processes of the job have joined and JAX is initialised; without --distributed, does nothing.

    Raises:
      ConfigError: flags contradict each other, or neither flags nor environment give a value.
      TimeoutError: a process has not joined in time; the message says which.
    """
    flags = {"--coordinator": args.coordinator, "--processes": args.processes, "--process-id": args.process_id}
    if not args.distributed:
        for flag, value in flags.items():
            if value is not None:
                raise ConfigError(f"{flag} is only read with --distributed.")
        return
    import jax
    from jax._src.clusters import ClusterEnv

    deadline = time.monotonic() + args.start_timeout
    coordinator, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
        args.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        args.processes, args.process_id, None, None, args.start_timeout,
    )  # fmt: skip
    detected = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    missing = [flag for flag, value in detected.items() if value is None]
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            f"--distributed: no TPU pod, GKE, SLURM or MPI job is recognised here: {', '.join(missing)} must be given."
        )
    if not 0 <= process < processes or ":" not in coordinator:
        raise ConfigError(
            f"--distributed: process {process} of {processes}, coordinator {coordinator}: expected 0 <= I < N and "
            "HOST:PORT."
        )
    roll_call(coordinator, processes, process, deadline)
    jax.distributed.initialize(
        coordinator, processes, process, devices,
        initialization_timeout=args.start_timeout, heartbeat_timeout_seconds=args.heartbeat_timeout,
    )  # fmt: skip


def roll_call(coordinator: str, processes: int, process: int, deadline: float) -> None:
    """Waits until all `processes` have reported to process 0; `deadline` is a time of time.monotonic(), in seconds.

    Raises:
      TimeoutError: in every process that came, naming those that did not.
      ConfigError: two processes have the same number, or they disagree on the number of processes.
    """
    if processes == 1:
        return
    host, _, port = coordinator.rpartition(":")
    if process:
        _report(host, int(port), processes, process, deadline)
    else:
        _listen(int(port), processes, deadline)


def _report(host: str, port: int, processes: int, process: int, deadline: float) -> None:
    """Reports this process to process 0 and waits for its answer."""
    message = f"{process} {processes} {socket.gethostname()}\n".encode()
    answer, reason = "", OSError("no answer")
    while time.monotonic() < deadline and not answer:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())) as line:
                line.sendall(message)
                line.settimeout(max(0.1, deadline - time.monotonic()) + 10)  # process 0 answers at the deadline
                with line.makefile() as text:
                    answer = text.readline().strip()
        except OSError as error:
            reason = error
        if not answer:
            time.sleep(0.2)
    if not answer:
        raise TimeoutError(f"process {process} of {processes} has not reached process 0 at {host}:{port}: {reason}")
    _raise_unless_complete(answer)


def _listen(port: int, processes: int, deadline: float) -> None:
    """Waits for the other processes and answers all of them."""
    arrived: dict[int, str] = {}
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=processes)
        stack.enter_context(server)
        lines, verdict = [], ""
        while len(arrived) < processes - 1 and not verdict:
            server.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            try:
                line = stack.enter_context(server.accept()[0])
                line.settimeout(5)
                with line.makefile() as text:
                    number, total, host = text.readline().split()
                number, total = int(number), int(total)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    verdict = _missing(processes, arrived)
                continue
            except (OSError, ValueError):  # not a process of a giraffe job
                continue
            lines.append(line)
            if total != processes or number in arrived or not 0 < number < processes:
                other_host = arrived.get(number, socket.gethostname())
                job = f"this job of {processes} processes with {other_host}"
                verdict = f"wrong: process {number} of {total} on {host} does not belong to {job}"
            arrived[number] = host
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall((verdict or "complete").encode() + b"\n")
                line.recv(1)  # until the other side has closed, so that the port is free at once
    _raise_unless_complete(verdict or "complete")


def _missing(processes: int, arrived: dict[int, str]) -> str:
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    named = {i: f" ({names[i]})" for i in range(processes)} if len(names) == processes else {}
    lacking = [f"{i}{named.get(i, '')}" for i in range(1, processes) if i not in arrived]
    present = [f"0 ({socket.gethostname()})", *[f"{i} ({host})" for i, host in sorted(arrived.items())]]
    return f"missing: of {processes} processes {', '.join(lacking)} did not come in time; here are {', '.join(present)}"


def _raise_unless_complete(answer: str) -> None:
    if answer.startswith("wrong"):
        raise ConfigError(f"--distributed: {answer.removeprefix('wrong: ')}.")
    if answer != "complete":
        raise TimeoutError(f"--start-timeout: {answer.removeprefix('missing: ')}.")
