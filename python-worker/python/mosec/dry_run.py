"""`--dry-run`: one worker for each stage, the first one's example sent through all of them, and a report in the log.

Both halves are here. The service's process starts the workers and sends requests that say "example number n". A first
stage's worker, told by a variable in its environment, takes its own example in their place. Everything else is the way
of any request: batches, codecs between the stages, time limits, errors.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mosec import errors
from mosec.log import internal_logger
from mosec.worker import Worker

# Names the folder where workers write down what their example is; set in a dry run's worker processes only.
_VARIABLE = "MOSEC_INTERNAL_DRY_RUN"
# A first start may have to download a model, so nothing is cut short before an hour. Milliseconds.
_LIMIT = 60 * 60 * 1000


class DryRunError(Exception):
    """A worker did not start, or a request failed."""


class Service(Protocol):
    """What the native half gives: the service without a port."""

    def send(self, route: int, payloads: list[bytes]) -> list[tuple[int, bytes]]: ...
    def pids(self) -> list[int | None]: ...
    def stop(self) -> None: ...


def spec_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The service's specification as a dry run wants it: one worker for each stage, time for downloads, no retries."""
    changes = {"replicas": 1, "timeout": _LIMIT, "delivery": "at_most_once"}
    stages = [stage | changes | {"env": stage["env"][:1]} for stage in spec["stages"]]
    return spec | {"stages": stages, "timeout": _LIMIT}


def run(spec: dict[str, Any], gateway: dict[str, Any], folder: str) -> None:
    """Runs the service that `spec` describes. `folder`: for the workers' notes. Errors: `DryRunError`."""
    from mosec import _native

    logger = internal_logger()
    for route in spec["routes"]:
        names = [spec["stages"][stage]["name"] for stage in route["stages"]]
        logger.info("init dry run for endpoint %s with %s", route["path"], names)
    os.environ[_VARIABLE] = folder
    try:
        service = _native.DryRun(json.dumps({"spec": spec_of(spec), "gateway": gateway}))
    except RuntimeError as error:
        raise DryRunError(str(error)) from error
    finally:
        del os.environ[_VARIABLE]
    try:
        logger.info("dry run init successful")
        for route in range(len(spec["routes"])):
            _run_route(service, spec, route, folder)
    finally:
        service.stop()
    logger.info("dry run exit")


def is_on() -> bool:
    """Whether this is a worker of a dry run."""
    return _VARIABLE in os.environ


def prepare(worker: Worker) -> None:
    """Makes a worker take its example wherever it would decode a request, and notes down what the example is."""
    items = examples(worker)
    note = {"request": _describe(_chosen(worker)) if items else None, "items": len(items)}
    _note_path(os.environ[_VARIABLE], worker.stage).write_text(json.dumps(note))
    worker.deserialize = lambda data: items[int(bytes(data))]  # type: ignore[method-assign]


def examples(worker: Worker) -> Sequence[Any]:
    """The requests that the worker's example stands for: of a batching stage, whose example is a batch, each item."""
    example = _chosen(worker)
    if example is None:
        return []
    return example if worker.max_batch_size > 1 and isinstance(example, list | tuple) else [example]


def _chosen(worker: Worker) -> Any:
    if worker.example is not None:
        return worker.example
    return worker.multi_examples[0] if len(worker.multi_examples) > 0 else None


def _describe(example: Any) -> Any:
    """What the report says of an example: itself, where JSON can say it."""
    try:
        json.dumps(example)
        return example
    except (TypeError, ValueError):
        return repr(example)


def _note_path(folder: str, stage: str) -> Path:
    return Path(folder) / f"example_{stage}.json"


def _run_route(service: Service, spec: dict[str, Any], route: int, folder: str) -> None:
    logger = internal_logger()
    stages = spec["routes"][route]["stages"]
    note = json.loads(_note_path(folder, spec["stages"][stages[0]]["name"]).read_text())
    if note["items"] == 0:
        logger.info("cannot find the example in the 1st stage worker, skip warmup")
        return
    pids = service.pids()
    used_before = {stage: _cpu_seconds(pids[stage]) for stage in stages}
    began = time.perf_counter()
    answers = service.send(route, [str(number).encode() for number in range(note["items"])])
    duration = time.perf_counter() - began
    for code, payload in answers:
        if code != errors.OK:
            raise DryRunError(f"endpoint {spec['routes'][route]['path']}: {payload.decode('utf-8', 'replace')}")
    metrics = [
        {
            "stage": spec["stages"][stage]["name"],
            "cpu_time_seconds": _cpu_seconds(pids[stage]) - used_before[stage],
            "max_rss_bytes": _max_rss_bytes(pids[stage]),
        }
        | _gpu_memory(pids[stage])
        for stage in stages
    ]
    report = {
        "request": note["request"],
        "result_size": sum(len(payload) for _, payload in answers),
        "warmup_duration": duration,
        "stage_metrics": metrics,
    }
    logger.info("dry run result: %s", json.dumps(report))


def _cpu_seconds(pid: int | None) -> float:
    """Time that the process's threads have run. Zero of a process that is gone."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        return _cpu_seconds_in_ticks(pid)


def _cpu_seconds_in_ticks(pid: int | None) -> float:
    """The same where the kernel keeps no finer time."""
    try:
        # After the name, which may hold anything: state is field 3, utime 14 and stime 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _max_rss_bytes(pid: int | None) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0


def _gpu_memory(pid: int | None) -> dict[str, int]:
    """What the process holds of the GPU that it uses, where the package `pynvml` is installed and finds one."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
                if process.pid == pid:
                    total = pynvml.nvmlDeviceGetMemoryInfo(device).total
                    return {"gpu_memory_used_bytes": process.usedGpuMemory or 0, "gpu_memory_total_bytes": total}
    except pynvml.NVMLError as error:
        internal_logger().debug("the GPU's memory cannot be read: %s", error)
    return {}
