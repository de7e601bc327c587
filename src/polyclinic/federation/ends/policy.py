"""Whether a site takes part in a study: by its policy, and by what somebody there has approved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from polyclinic.errors import FederationError
from polyclinic.federation.site_file import Policy
from polyclinic.files import write_atomic
from polyclinic.methods import PLAIN_PARTS
from polyclinic.models import networks_in
from polyclinic.parts import build_part
from polyclinic.study.compatibility import models_per_network, sends_site_models
from polyclinic.study.declaration import Declaration
from polyclinic.study.given.plugins import canonical_package, used_plugins
from polyclinic.tasks import TASKS

#: Fewer characters of a hash may fit another study.
_LEAST_MARK = 8
_CHANGE = "Change the study, or ask the site to change its policy."


def check_policy(site: str, policy: Policy, declaration: Declaration, researcher: str) -> None:
    """Whether a study is one that a site takes part in.

    Args:
        site: its name.
        policy: what it allows.
        declaration: the study.
        researcher: who asks.

    Raises:
        FederationError: P604 with all that it does not allow.
    """
    refused = list(refusals(policy, declaration, researcher))
    if refused:
        raise FederationError("P604", f"Site {site} does not take part: {'; '.join(refused)}.", _CHANGE)


def refusals(policy: Policy, declaration: Declaration, researcher: str) -> Iterator[str]:
    """What a study asks that a policy does not allow, in words."""
    if policy.researchers is not None and researcher not in policy.researchers:
        yield f"{researcher} may not ask for studies"
    asked = {
        "task": ([declaration.task], policy.tasks),
        "method": ([method.name for method in declaration.study_methods], policy.methods),
        "model": ([name for one in declaration.all_networks for name in networks_in(*one)], policy.models),
        "metric": (list(declaration.metrics), policy.metrics),
        "part": (list(_parts(declaration)), policy.parts),
    }
    for what, (names, allowed) in asked.items():
        wrong = [] if allowed is None else [name for name in dict.fromkeys(names) if name not in allowed]
        if wrong:
            yield f"the {what}{_plural(wrong)} {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not allowed"
    for package, version in used_plugins(declaration).items():
        if not _allows(policy.plugins, package, version):
            yield f"it needs the plug-in {package} {version}, which `plugins` of the policy does not name"
    for method in declaration.study_methods:
        names = [name for _, name in method.method.named_parts]
        missing = [name for name in policy.protection if name not in names]
        if missing and method.method.scope == "federation":
            yield f"{method.label} is without {', '.join(missing)}"
        built = {name: build_part(name, options) for name, options in method.method.parts}
        noise = any(part.private == "a patient" for part in built.values())
        # Noise is in all that a site sends in training, so that it covers what is handed on, too.
        sending = [name for name, part in built.items() if sends_site_models(part) or (part.hands_on and not noise)]
        if sending and not policy.personal_models:
            yield f"{method.label} sends the site's own model to other sites ({sending[0]})"
        grouping = models_per_network(method.method) if declaration.own_networks else ""
        elsewhere = declaration.is_unseen(method) or bool(declaration.evaluation.voters)
        if grouping and elsewhere and not policy.personal_models:
            what = "the model of a network, which may be this site's alone,"
            yield f"{method.label} sends {what} to sites that did not train ({grouping})"
        shared = [f"{part.shares_masks} ({name})" for name, part in built.items() if part.shares_masks]
        if shared and not policy.masks:
            yield f"{method.label} has masks of the site's patients given to the server, up to {shared[0]}"
        if policy.privacy is not None and method.method.scope == "federation" and not noise:
            yield f"{method.label} has no noise that protects a patient"
    final = declaration.final_model
    if final is not None and not policy.final_models:
        yield "it ends with a model that is used (`final_model`)"
    if declaration.data.public is not None and not policy.public:
        yield "it has a public set (`data: {public: ...}`)"
    of_model = 0 if final is None else final.rounds or 0
    rounds = max(of_model, *(method.training.rounds for method in declaration.study_methods))
    if policy.rounds is not None and rounds > policy.rounds:
        yield f"{rounds} rounds are more than {policy.rounds}"
    evaluation = declaration.evaluation
    if evaluation.predictions == "coordinator" and not policy.predictions:
        yield "predictions of single cases may not leave (`evaluation: {predictions: sites}` keeps them)"
    pictures = TASKS[declaration.task].has_pictures() and declaration.report.overlays
    shown = pictures and evaluation.predictions == "coordinator"
    if shown and not policy.overlays:
        yield "pictures of single cases may not leave (`report: {overlays: true}` asks for them)"
    if evaluation.disclosure_floor < policy.floor:
        yield f"`disclosure_floor: {evaluation.disclosure_floor}` is less than {policy.floor}"


def _allows(plugins: Sequence[str], package: str, version: str) -> bool:
    """Whether a policy names a plug-in: names of packages are the same with ``-``, ``_`` and ``.``, in any letters."""
    for allowed in plugins:
        name, _, wanted = allowed.partition("==")
        if canonical_package(name) == canonical_package(package) and wanted in ("", version):
            return True
    return False


def _parts(declaration: Declaration) -> Iterator[str]:
    """Names of the parts that methods have besides those of fedavg."""
    for method in declaration.study_methods:
        yield from (name for place, name in method.method.named_parts if (place, name) not in PLAIN_PARTS)


def _plural(names: Sequence[str]) -> str:
    return "" if len(names) == 1 else "s"


def check_approval(site: str, policy: Policy, kit: Path, mark: str, text: str) -> None:
    """Whether somebody at the site has approved the study, where the policy asks for that.

    A study that waits is put into the folder ``waiting`` of the kit, so that it can be read and approved.

    Args:
        site: its name.
        policy: what it allows.
        kit: folder of the site's kit.
        mark: hash of the study.
        text: its file.

    Raises:
        FederationError: P604, nobody has yet.
    """
    if policy.approval == "automatic" or (kit / "approved" / f"{mark}.yaml").is_file():
        return
    (kit / "waiting").mkdir(exist_ok=True)
    write_atomic(kit / "waiting" / f"{mark}.yaml", text)
    raise FederationError(
        "P604", f"Site {site} does not take part yet: a person there must approve the study {mark[:12]}.",
        f"Ask the site to call `polyclinic site approve {mark[:12]}`, and run the study again.",
    )  # fmt: skip


def approve(kit: Path, mark: str) -> Path:
    """Approve a study that waits, by the beginning of its hash; returns its file.

    Raises:
        FederationError: P604, none or several that wait begin so.
    """
    found = sorted((kit / "waiting").glob("*.yaml")) if (kit / "waiting").is_dir() else []
    chosen = [path for path in found if path.stem.startswith(mark)]
    if len(chosen) != 1 or len(mark) < _LEAST_MARK:
        waiting = ", ".join(path.stem[:12] for path in found) or "none"
        raise FederationError("P604", f"{len(chosen)} studies that wait begin with {mark!r}.", f"Waiting: {waiting}.")
    (kit / "approved").mkdir(exist_ok=True)
    return chosen[0].replace(kit / "approved" / chosen[0].name)
