"""The metrics of tasks: each one's title, how it is averaged and compared, and how it is scored.

A task module lists its metrics in `METRICS`; a name means the same in every task.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["perplexity", "share", "fraction", "nll", "mean"]


@dataclass(frozen=True)
class Metric:
    """A metric of rows. `better` is None if values are not ranked.

    Kinds: "perplexity" (rows of nll and tokens), "share" (0 or 1), "fraction" (0 to 1), "nll" (nats), "mean".
    """

    name: str
    title: str
    kind: Kind
    better: Literal["high", "low"] | None
    scored: str = ""

    @property
    def share(self) -> bool:
        """Whether it counts right answers and is shown in percent."""
        return self.kind in ("share", "fraction")


PERPLEXITY = Metric("perplexity", "perplexity", "perplexity", "low")
TEACHER = Metric(
    "teacher", "answers right, teacher-forced", "share", "high",
    "Teacher-forced: an answer counts when each of its tokens is the most likely one after those before it.",
)  # fmt: skip
ANSWER_NLL = Metric("answer_nll", "loss on the answer, nats a token", "nll", "low")
NUMBER = Metric(
    "generate", "answers right, generated", "share", "high",
    "Generated: greedy decoding; the first number in the output must be the answer.",
)  # fmt: skip
LAST_NUMBER = Metric(
    "generate_last", "answers right, generated, last number", "share", "high",
    "Generated: greedy decoding; the last number in the output must be the answer.",
)  # fmt: skip
MATCH_ALL = Metric(
    "match_all", "answers found, generated", "fraction", "high",
    "Generated: greedy decoding; the share of the answers that the output holds, in any case of letters.",
)  # fmt: skip
MATCH_PART = Metric(
    "match_part", "answers right, generated", "share", "high",
    "Generated: greedy decoding; the output must hold one of the allowed answers, in any case of letters.",
)  # fmt: skip
PRESENCE = Metric(
    "presence", "presence accuracy, generated", "share", "high",
    "Generated: greedy decoding; the output must hold the answer to the letter.",
)  # fmt: skip
