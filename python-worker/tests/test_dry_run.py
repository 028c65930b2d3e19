"""The dry run's parts that need no native half; the whole is tested with a real service in test_service.py."""

import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from mosec import Worker, dry_run


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def worker(max_batch_size: int = 1, **attributes: Any) -> Worker:
    made = Echo()
    made.stage, made.max_batch_size = "Echo_1", max_batch_size
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("made", "items"),
    [
        (worker(), []),
        (worker(example=0), [0]),
        (worker(example=[1, 2]), [[1, 2]]),
        (worker(max_batch_size=4, example=[1, 2]), [1, 2]),
        (worker(max_batch_size=4, example="word"), ["word"]),
        (worker(multi_examples=[{"a": 1}, 2]), [{"a": 1}]),
        (worker(max_batch_size=4, multi_examples=[[1], [2]]), [1]),
        (worker(example=1, multi_examples=[2]), [1]),
    ],
)
def test_the_requests_of_an_example(made: Worker, items: list[Any]) -> None:
    assert list(dry_run.examples(made)) == items


@pytest.mark.parametrize(
    ("example", "noted"), [({"a": 1}, {"a": 1}), (MappingProxyType({}), "mappingproxy({})"), (b"x", "b'x'")]
)
def test_a_worker_takes_its_example_for_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Any, noted: Any
) -> None:
    monkeypatch.setenv("MOSEC_INTERNAL_DRY_RUN", str(tmp_path))
    assert dry_run.is_on()
    made = worker(example=example)
    dry_run.prepare(made)
    assert made.deserialize(bytearray(b"0")) is example
    assert json.loads((tmp_path / "example_Echo_1.json").read_text()) == {"request": noted, "items": 1}


def test_one_worker_for_each_stage_and_time_for_downloads() -> None:
    stage = {"name": "A_1", "replicas": 3, "timeout": 5, "env": [{"a": "1"}, {"a": "2"}, {"a": "3"}], "attempts": 3}
    spec = dry_run.spec_of({"stages": [stage], "timeout": 3000, "routes": []})
    (changed,) = spec["stages"]
    assert changed | {"timeout": 0} == {
        "name": "A_1",
        "replicas": 1,
        "timeout": 0,
        "env": [{"a": "1"}],
        "attempts": 3,
        "delivery": "at_most_once",
    }
    assert changed["timeout"] == spec["timeout"] >= 600_000
    assert stage["replicas"] == 3, "the service's own is as it was"


def test_a_process_tells_what_it_has_used() -> None:
    assert dry_run._cpu_seconds(os.getpid()) > 0 and dry_run._cpu_seconds_in_ticks(os.getpid()) >= 0
    assert dry_run._max_rss_bytes(os.getpid()) > 1024 * 1024
    assert (dry_run._cpu_seconds(None), dry_run._max_rss_bytes(None)) == (0, 0)
