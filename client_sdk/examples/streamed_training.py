"""
Fine-tune on a file, with each step as it is made, and the loss curve at the end.

    python client_sdk/examples/streamed_training.py http://203.0.113.7:80 rows.jsonl question answer

The origin's policy was stored before: blindbox trust http://203.0.113.7:80 --policy FILE
"""

from __future__ import annotations

import sys
from typing import Any

import blindbox


def main(origin: str, path: str, question: str, answer: str, *, policy: Any = None) -> None:
    """The job goes on if this program is stopped: blindbox.job(origin, ID) finds it again."""
    job = blindbox.finetune(origin, path, policy=policy, question_column=question, answer_column=answer)
    print(job.id)
    for event in job.events(follow=True):
        print(event.message)
    if job.error is not None:
        raise job.error
    print(f"loss {job.metrics().curve().text()}")
    print(f"ask it as {job.model}")


if __name__ == "__main__":
    main(*sys.argv[1:5])
