"""Ten times more than there is room for, through the seal: answered, or refused in time and in words."""

from __future__ import annotations

import re
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import blindbox.requests as requests
from blindbox import UnsafeSimulatedPolicy, UnsafeSimulationWarning
from tests.kit.process import in_its_own_process

CALLERS = 80
SERVED = 8  # four run, four wait


def test_ten_times_the_load_is_answered_or_refused_at_once_and_then_all_is_well() -> None:
    """S-10: 200, or 429 and 503 with Retry-After, decided before any answer has ended; nobody is cut off."""
    engine = {"rate": 10.0, "most_sequences": 4}
    with (
        in_its_own_process(engine=engine, max_waiting=4, max_waiting_each=2) as enclave,
        ThreadPoolExecutor(CALLERS) as threads,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UnsafeSimulationWarning)
        session = requests.Session(policy=UnsafeSimulatedPolicy())
        session.get(f"{enclave.origin}/v1/models")  # proves, once for all
        together = threading.Barrier(CALLERS)

        def ask(number: int, text: str = "x" * 40) -> Any:
            together.wait(120)
            token = f"caller {number % 20}".replace(" ", "-") + "-" * 20
            return session.post(
                f"{enclave.origin}/test",
                json={"input_text": text},
                headers={"Authorization": f"Bearer {token}"},
            )

        answers = list(threads.map(ask, range(CALLERS)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 429, 503}
        assert SERVED <= statuses[200] < CALLERS / 2
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["completion"] == "x" * 40
            else:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"]["code"] in ("overloaded", "too_many_waiting")
        text = enclave.ask_operator("/metrics")[1]
        (quick,) = re.findall(r'^blindbox_request_seconds_bucket\{le="2.5",route="/test"\} (.+)$', text, re.M)
        assert float(quick) >= 0.99 * (CALLERS - statuses[200])
        assert re.search(r'^blindbox_(waiting|running)\{engine="echo"\} 0\.0$', text, re.M)
        after = session.post(f"{enclave.origin}/test", json={"input_text": "well"})
        assert after.json()["completion"] == "well"
