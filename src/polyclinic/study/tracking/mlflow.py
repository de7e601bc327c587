"""MLflow: a run for the study, and one within it for each training."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyclinic.study.crate.contents import REPORT
from polyclinic.study.tracking.about import About
from polyclinic.study.tracking.outcome import Outcome
from polyclinic.study.tracking.trainings import Part, Training
from polyclinic.study.tracking.values import by_round

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

#: What the URI of a file begins with.
SQLITE = "sqlite:///"
#: Tags: the study's identity, the name of a training.
_STUDY, _TRAINING, _PARENT = "polyclinic.study", "polyclinic.training", "mlflow.parentRunId"
#: Most metrics and parameters in one request.
_METRICS, _PARAMETERS = 1000, 100
#: What is set before MLflow is loaded, unless someone has set it: a server that is down is given up soon, and asked
#: again later.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class Mlflow:
    """Writes to a store of MLflow. What is there already, of a run that was killed, is asked for and not written again.

    Args:
        about: the study.
        store: the URI of a server or a database, or the path of a file; None for one in the study's folder.
        experiment: its name.
    """

    title = "MLflow"

    def __init__(self, about: About, store: str | Path | None, experiment: str) -> None:
        self.about, self.experiment = about, experiment
        store = store or about.folder / "mlflow.db"
        self.file = store.resolve() if isinstance(store, Path) else None
        self.uri = store if isinstance(store, str) else f"{SQLITE}{_quoted(str(self.file))}"
        self._client: MlflowClient | None = None
        self._id = self._parent = ""
        self._runs: dict[str, str] = {}
        self._whole, self._described = set[str](), set[str]()

    # What a tracker does --------------------------------------------------------------------------------------------

    def is_over(self, training: Training) -> bool:
        """Whether all rounds of a training are there."""
        self._open()
        return training.name in self._whole

    def rounds(self, part: Part) -> None:
        """Write new rounds of a training."""
        client, run = self._open(), self._run(part.training)
        there = set[tuple[str, int]]()
        if part.first:
            client.update_run(run, status="RUNNING")
            there = self._there(run)
        self._log(run, [
            (name, value, number)
            for number, values in by_round(part.rows) for name, value in values.items() if (name, number) not in there
        ])  # fmt: skip
        if part.done:
            client.set_terminated(run, "FINISHED")
            self._whole.add(part.training.name)

    def results(self, found: Outcome) -> None:
        """Write what is known at the end."""
        client = self._open()
        for training, values in found.results.items():
            run = self._run(training)
            known = client.get_run(run).data.metrics
            self._log(run, [(name, value, 0) for name, value in values.items() if name not in known])
            if training.name not in self._whole:  # a method that is tested with the models of another
                client.set_terminated(run, "FINISHED")
        known = client.get_run(self._parent).data.metrics
        self._log(self._parent, [(name, value, 0) for name, value in found.whole.items() if name not in known])
        for file in found.files:
            if file.is_dir():
                client.log_artifacts(self._parent, str(file), file.name)
            else:
                client.log_artifact(self._parent, str(file), "tables")
        if found.report:
            with tempfile.TemporaryDirectory(prefix="polyclinic-") as folder:
                page = Path(folder) / REPORT
                page.write_text(found.report, encoding="utf-8")
                client.log_artifact(self._parent, str(page))
        client.set_terminated(self._parent, "FINISHED")

    def forget(self) -> None:
        """Something failed: what is there is asked for again."""
        self._client = None

    def stop(self) -> None:
        """The study was stopped, and may go on."""
        if self._client is None:
            return
        for name, run in self._runs.items():
            if name not in self._whole:
                self._client.set_terminated(run, "KILLED")
        self._client.set_terminated(self._parent, "KILLED")

    # The store ------------------------------------------------------------------------------------------------------

    def _open(self) -> MlflowClient:
        """The store, with the study's runs as they are there."""
        if self._client is not None:
            return self._client
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        client = _client(self.uri)
        self._id = self._experiment(client)
        mine = f"tags.`{_STUDY}` = '{self.about.identity}'"
        runs = list(_found(client, self._id, mine))
        parent = next((run for run in runs if _TRAINING not in run.data.tags), None)
        if parent is None:
            parent = client.create_run(self._id, tags={_STUDY: self.about.identity}, run_name=self.about.title)
        self._parent = parent.info.run_id
        if parent.info.status != "RUNNING":
            client.update_run(self._parent, status="RUNNING")
        self._describe(client, self._parent, self.about.options)
        trainings = [run for run in runs if _TRAINING in run.data.tags]
        self._runs = {run.data.tags[_TRAINING]: run.info.run_id for run in trainings}
        self._described = set()
        self._whole = {run.data.tags[_TRAINING] for run in trainings if run.info.status == "FINISHED"}
        self._client = client
        return client

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        place = None
        if self.file is not None:  # MLflow would take the folder in which the program runs
            place = self.file.with_name(f"{self.file.stem}-artifacts").as_uri()
        return str(client.create_experiment(self.experiment, place))

    def _run(self, training: Training) -> str:
        client = self._open()
        if training.name not in self._runs:
            tags = {_STUDY: self.about.identity, _TRAINING: training.name, _PARENT: self._parent}
            made = client.create_run(self._id, tags=tags, run_name=training.name)
            self._runs[training.name] = made.info.run_id
        run = self._runs[training.name]
        if training.name not in self._whole | self._described:  # it may be there without, of a run that was killed
            self._describe(client, run, {**self.about.methods.get(training.method, {}), **training.about})
            self._described.add(training.name)
        return run

    def _describe(self, client: MlflowClient, run: str, options: Mapping[str, str | float]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)) for name, value in options.items()]
        for start in range(0, len(parameters), _PARAMETERS):
            client.log_batch(run, params=parameters[start : start + _PARAMETERS], synchronous=True)

    def _log(self, run: str, values: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, number) for name, value, number in values]
        for start in range(0, len(metrics), _METRICS):
            self._open().log_batch(run, metrics=metrics[start : start + _METRICS], synchronous=True)

    def _there(self, run: str) -> set[tuple[str, int]]:
        """Names of metrics, and the rounds of which they are there."""
        client = self._open()
        names = client.get_run(run).data.metrics
        return {(name, one.step) for name in names for one in client.get_metric_history(run, name)}


def _quoted(path: str) -> str:
    """A path in a URI; only what would be read as something else, since MLflow makes a folder by the text as it is."""
    return path.replace("%", "%25").replace("?", "%3F")


def _client(uri: str) -> MlflowClient:
    """A client of a store, that tells nobody else of itself."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # else it tells its makers of use
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.telemetry import set_telemetry_client
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    set_telemetry_client()  # where the program had loaded MLflow before
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _found(client: MlflowClient, experiment: str, wanted: str) -> Iterable[Run]:
    token: Any = None
    while True:
        page = client.search_runs([experiment], wanted, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
