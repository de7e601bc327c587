"""The file ``site.yaml``: where a site's data are, and what studies may ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from polyclinic.errors import FederationError
from polyclinic.federation.consortium import checked
from polyclinic.limits import AboveZero
from polyclinic.study.reading import read_yaml

#: Name of the file in the folder ``local`` of a site's kit.
SITE_FILE = "site.yaml"


#: A package, perhaps with its version.
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(==\S+)?$")]


class _Entries(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lifetime(_Entries):
    """What all trainings together may cost the privacy of a site's patients.

    Attributes:
        epsilon: ε, at this ``delta``.
        delta: δ, below one by the number of patients.
    """

    epsilon: AboveZero
    delta: Annotated[float, Strict(), Field(gt=0, lt=1)] = 1e-5


class Policy(_Entries):
    """What a site lets studies do. What is not given is not restricted, but for what may leave.

    Attributes:
        patients: least number of patients with whom the site takes part in a study.
        floor: of fewer patients nothing is said; values that fewer cases have are not named.
        tasks, methods, models, metrics: names of those that are allowed; None for all. Methods are names of the
            catalogue, not labels.
        parts: names of the parts that methods may have besides those of fedavg; None for all.
        plugins: packages of the plug-ins that a study may need, ``NAME`` or ``NAME==VERSION``; none by default.
        protection: names of parts that every method must have by which sites train together, such as ``secure_sum``.
        privacy: what all trainings of all studies may cost the privacy of the site's patients, as its ledger has it;
            then every method by which sites train together must have noise that protects a patient.
        rounds: most rounds of a training.
        hours: for how long the site works for a study, in all.
        predictions: whether predictions of single test cases may leave, under pseudonyms.
        overlays: whether pictures of single cases may leave.
        personal_models: whether parts of a model may leave that a method keeps at the site, and whether the site's own
            model may be sent to other sites.
        masks: whether masks of patients may be given to the server, so many as the study says.
        final_models: whether a study may end with a model that is used, trained on all of the site's cases.
        public: whether a study may have a public set, of whose cases the site tells what its model finds.
        researchers: who may ask for studies; None for all of the consortium.
        approval: ``automatic`` takes part in every study that fits the policy; ``person`` waits until somebody at the
            site approves the very study.
    """

    patients: Annotated[int, Field(ge=1)] = 10
    floor: Annotated[int, Field(ge=1)] = 5
    tasks: list[str] | None = None
    methods: list[str] | None = None
    models: list[str] | None = None
    metrics: list[str] | None = None
    parts: list[str] | None = None
    plugins: list[PluginName] = []
    protection: list[str] = []
    privacy: Lifetime | None = None
    rounds: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    predictions: bool = False
    overlays: bool = False
    personal_models: bool = False
    masks: bool = False
    final_models: bool = True
    public: bool = True
    researchers: list[str] | None = None
    approval: Literal["automatic", "person"] = "automatic"

    @model_validator(mode="after")
    def _models_stay(self) -> Policy:
        if self.privacy is not None and self.personal_models:
            raise ValueError("`privacy` and `personal_models` exclude each other: such parts leave without noise")
        return self


class SiteFile(_Entries):
    """What a site says of itself; nothing of it leaves the site but its name.

    Attributes:
        name: in studies and in the site's own tables; None for the name of its kit.
        data: name -> place on this computer. A study names its data: ``${NAME}/...`` or the first part of a path.
        device: where networks run: ``auto``, ``cpu``, ``cuda``, ...
        policy: what studies may ask.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    data: dict[str, Path]
    device: str = "auto"
    policy: Policy = Policy()

    @classmethod
    def read(cls, path: Path) -> SiteFile:
        """From its file; places are relative to it.

        Raises:
            FederationError: P605, there is no such file, an entry does not fit, or a place does not exist.
        """
        if not path.is_file():
            raise FederationError("P605", f"There is no {path}.", "Write one; see docs/federation.md.")
        content, _ = read_yaml(path)
        found = checked(cls, content, path.name, "P605")
        places = {name: (path.parent / place).resolve() for name, place in found.data.items()}
        for name, place in places.items():
            if "/" in name or name in ("", ".", ".."):
                raise FederationError("P605", f"{path.name}, data: got the name {name!r}, expected one without '/'.",
                                      "Give each file or folder a name of its own.")  # fmt: skip
            if not place.exists():
                raise FederationError("P605", f"{path.name}, data.{name}: there is nothing at {place}.",
                                      "Mend the place.")  # fmt: skip
        return found.model_copy(update={"data": places})
