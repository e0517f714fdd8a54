"""The roll call before a job of several processes: who came, who did not, who does not belong."""

import argparse
import re
import socket
import threading
import time

import pytest

from giraffe_jax.cli import distributed
from giraffe_jax.cli.distributed import roll_call
from giraffe_jax.config import ConfigError


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def call(members, seconds):
    """What each (process, processes) of a roll call gets: an exception, or None."""
    port, answers = free_port(), {}

    def one(at, process, processes):
        try:
            roll_call(f"localhost:{port}", processes, process, time.monotonic() + seconds)
            answers[at] = None
        except Exception as error:
            answers[at] = error

    threads = [threading.Thread(target=one, args=(at, *member)) for at, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
    assert len(answers) == len(members)
    return [answers[at] for at in range(len(members))]


def test_all_that_are_awaited_go_on():
    assert call([(2, 3), (0, 3), (1, 3)], seconds=600) == [None] * 3


def test_everyone_that_came_is_told_who_did_not():
    for answer in call([(0, 4), (2, 4)], seconds=3.0):
        assert isinstance(answer, TimeoutError)
        assert "of 4 processes 1, 3 did not come" in str(answer) and "here are 0 (" in str(answer)


def test_a_coordinator_that_never_comes_is_named():
    (answer,) = call([(1, 2)], seconds=0.5)
    assert isinstance(answer, TimeoutError) and re.search(r"process 1 of 2 .* process 0 at localhost:\d+", str(answer))


@pytest.mark.parametrize("stranger", [(1, 5), (0, 3)])
def test_a_process_of_another_job_ends_it(stranger):
    """(1, 5): a job of another size. A second process 0 finds the port taken."""
    answers = call([(0, 3), stranger], seconds=3.0)
    if stranger == (1, 5):
        assert all(isinstance(answer, ConfigError) and "process 1 of 5" in str(answer) for answer in answers)
    else:
        assert sorted(type(answer).__name__ for answer in answers) == ["OSError", "TimeoutError"]


def test_two_with_one_number_end_it():
    answers = call([(0, 4), (2, 4), (2, 4)], seconds=600)
    assert all(isinstance(answer, ConfigError) and "process 2 of 4" in str(answer) for answer in answers)


def test_what_is_not_of_the_job_is_passed_over():
    port, answers = free_port(), []
    listening = threading.Thread(
        target=lambda: answers.append(roll_call(f"localhost:{port}", 2, 0, time.monotonic() + 600))
    )
    listening.start()
    for _ in range(10_000):
        try:
            for words in (b"GET / HTTP/1.1\n", b"\n"):
                with socket.create_connection(("localhost", port), timeout=60) as line:
                    line.sendall(words)
            break
        except OSError:
            time.sleep(0.05)
    roll_call(f"localhost:{port}", 2, 1, time.monotonic() + 600)
    listening.join(600)
    assert answers == [None]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "--processes is only read with --distributed"),
        (["--distributed", "--process-id=0", "--processes=2"], "--coordinator must be given"),
        (["--distributed", "--coordinator=host", "--process-id=0", "--processes=2"], "expected 0 <= I < N and HOST"),
        (["--distributed", "--coordinator=a:1", "--process-id=2", "--processes=2"], "process 2 of 2"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    parser = argparse.ArgumentParser()
    distributed.arguments(parser)
    with pytest.raises(ConfigError) as error:
        distributed.join(parser.parse_args(flags))
    assert message in str(error.value)


def test_without_flags_nothing_is_joined():
    parser = argparse.ArgumentParser()
    distributed.arguments(parser)
    distributed.join(parser.parse_args([]))
