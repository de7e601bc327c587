"""What training with noise guarantees to each patient, and what it has cost.

Private steps are told as `Event`s, which `accountants` add up to ε and δ. A `Ledger` remembers them for ever,
`noise_for` and `steps_within` plan them, a `Budget` is for one training or several, and a `Statement` says what they
guarantee. `lower_bound` is the other side: what an attack proves that a training tells.
"""

from polyclinic.privacy.accountants import Spent as Spent
from polyclinic.privacy.accountants import delta as delta
from polyclinic.privacy.accountants import epsilon as epsilon
from polyclinic.privacy.accountants import spent as spent
from polyclinic.privacy.audit import lower_bound as lower_bound
from polyclinic.privacy.budget import Budget as Budget
from polyclinic.privacy.events import Event as Event
from polyclinic.privacy.events import merged as merged
from polyclinic.privacy.ledger import Entry as Entry
from polyclinic.privacy.ledger import Ledger as Ledger
from polyclinic.privacy.solving import check_budget as check_budget
from polyclinic.privacy.solving import noise_for as noise_for
from polyclinic.privacy.solving import steps_within as steps_within
from polyclinic.privacy.statement import Statement as Statement
