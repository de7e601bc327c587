"""The server's parts of methods against client drift."""

from __future__ import annotations

from dataclasses import replace

from polyclinic.parts import SERVER_PARTS, Now, ServerPart, SiteEnd, Step, Update
from polyclinic.parts.measures import Measuring, measured, revealed


@SERVER_PARTS.add("normalised")
class Normalised(ServerPart):
    """FedNova: changes are divided by the length ‖a_k‖₁ of their path before they are aggregated, and what comes out is
    multiplied by Σ p_k ‖a_k‖₁. So sites that take more steps do not count for more than their cases.

    ‖a_k‖₁ is measured by the site, see `polyclinic.client.work.path_length`: the number of steps for SGD, longer with
    momentum, shorter with a proximal term. With equal paths it is FedAvg up to rounding.

    Source: Wang et al., Tackling the objective inconsistency problem in heterogeneous federated optimization, NeurIPS
    2020, equation 6 and section 4. Statistics of normalisation layers are aggregated as they are.
    """

    reveals = revealed("path")
    shapes = measured("path")
    needs_sgd = True
    retells = True
    needs_each = True
    undoes = True

    def at_site(self) -> SiteEnd:
        """Measures the path."""
        return Measuring("path")

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._paths: list[tuple[float, float]] = []

    def take(self, update: Update) -> Update:
        """Δ_k / ‖a_k‖₁; a site that took no step has no change to divide."""
        path = float(self.sent(update)["path"])
        self._paths.append((update.weight, path))
        return replace(update, change=update.change / path) if path else update

    def finish(self, step: Step) -> Step:
        """Σ p_k ‖a_k‖₁ times the aggregated change."""
        length = sum(weight * path for weight, path in self._paths) / sum(weight for weight, _ in self._paths)
        return replace(step, change=step.change.mul_(length))
