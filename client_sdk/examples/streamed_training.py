"""
Upload a dataset and fine-tune on it, with the progress as it is made.

    python client_sdk/examples/streamed_training.py http://203.0.113.7:80 rows.jsonl question answer

The origin's policy was stored before: blindbox trust http://203.0.113.7:80 --policy FILE
"""

from __future__ import annotations

import json
import sys
from typing import Any

import blindbox.requests as requests


def main(origin: str, path: str, question: str, answer: str, *, policy: Any = None) -> None:
    """One session: one proof, one tenant, pooled connections."""
    with requests.Session(policy, origin=origin) as session:
        with open(path, "rb") as rows:
            count = sum(1 for _ in rows)
            rows.seek(0)
            uploaded = session.post(f"{origin}/v1/files", files={"file": rows}, data={"purpose": "fine-tune"})
        uploaded.raise_for_status()
        asked = {
            "dataset_name": uploaded.json()["id"],
            "question_column": question,
            "answer_column": answer,
            "number_elements_for_training": count,
        }
        events = session.post(
            f"{origin}/finetune", json=asked, headers={"Accept": "text/event-stream"}, stream=True
        )
        events.raise_for_status()
        for line in events.iter_lines():
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                print(json.loads(line.removeprefix(b"data: ")))


if __name__ == "__main__":
    main(*sys.argv[1:5])
