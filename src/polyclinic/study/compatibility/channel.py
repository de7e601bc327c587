"""What is done to what leaves a site: codes, sums that hide single updates, and sites that send nothing."""

from __future__ import annotations

from itertools import zip_longest

from polyclinic.channel.distributed_noise import DistributedNoise
from polyclinic.channel.secure_sum import SecureSum
from polyclinic.methods import Method
from polyclinic.parts import TOPOLOGIES, Hiding, build_part
from polyclinic.parts.site_end import overrides
from polyclinic.study.compatibility.refusing import Local, Refusal, all_parts, built_parts


def hidden(method: Method, local: Local) -> Refusal | None:
    """Parts that need to see single updates, or tell of them, where the server sees sums alone."""
    by_name = dict(built_parts(method))
    ends = [(name, part.at_server()) for name, part in by_name.items()]
    hiding = [name for name, end in ends if isinstance(end, Hiding)]
    needing = [name for name, end in ends if end.needs_each]
    if len(hiding) > 1:
        return Refusal(f"{hiding[0]} and {hiding[1]} both show the server a sum alone.", "Use one of them.", "channel")
    grouped = [name for name, end in ends if isinstance(end, Hiding) and end.groups]
    named = [name for name, end in ends if end.named]
    if grouped and named:
        return Refusal(f"{named[0]} is about a single site, and {grouped[0]} shows the server sums of groups alone.",
                       "Leave out one of the two.", "server")  # fmt: skip
    if hiding and needing and not grouped:
        return Refusal(f"{needing[0]} needs each site's update, and {hiding[0]} shows the server their sum alone.",
                       f"Leave out {hiding[0]}, use the mean, shorten changes at the sites (`clip`), or let the rule "
                       f"work on sums of groups (`{hiding[0]}: {{group_size: ...}}`).", "server")  # fmt: skip
    adding = all(end.adds_all for _, end in ends if isinstance(end, Hiding))
    telling = [
        name
        for name, part in by_name.items()
        if part.reveals and not (adding and part.means) and (part.beside or overrides(part.at_site(), "end"))
    ] + [name for name, end in ends if end.needs_each and overrides(by_name[name].at_site(), "answer")]
    if hiding and telling:
        return Refusal(f"{telling[0]} sends something of each site, which {hiding[0]} does not hide.",
                       "Leave out one of the two.", "channel")  # fmt: skip
    returning = [name for name, part in by_name.items() if part.returns]
    if grouped and returning:
        return Refusal(f"{returning[0]} sends models of single sites on, and {grouped[0]} shows the server sums of "
                       "groups alone.", "Leave out one of the two.", "channel")  # fmt: skip
    return None


def quiet(method: Method, local: Local) -> Refusal | None:
    """Parts that may keep an update back where every site has to send one."""
    quiet = [(key, name) for key, name, part in all_parts(method) if overrides(part.at_site(), "sends")]
    if not quiet:
        return None
    (key, name), topology = quiet[0], method.topology[0]
    hiding = [part for part, built in built_parts(method) if isinstance(built.at_server(), Hiding)]
    if hiding:
        return Refusal(f"{name} lets single sites send nothing, which {hiding[0]} can't hide and takes for sites that "
                       "dropped out.", "Leave out one of the two.", key)  # fmt: skip
    if TOPOLOGIES[topology].one_by_one:
        return Refusal(f"{name} lets single sites send nothing; in the topology {topology} each hands the model on to "
                       "the next.", "Use `topology: star`.", key)  # fmt: skip
    return None


def encoded(method: Method, local: Local) -> Refusal | None:
    """Steps of the channel behind one whose output is no change of the weights any more."""
    before, packed = "", False
    for name, options in method.channel:
        part = build_part(name, options)
        summing = isinstance(part.at_server(), Hiding) and not packed  # of what the codes stand for
        if before and not (part.packs or summing):
            return Refusal(f"{name} works on the change of the weights, and comes after {before}, which gives codes.",
                           f"Name {name} before {before}, or leave one of them out. (The values of `top_k`, `random_k` "
                           "and `power_sgd` can have fewer bits: `values: int8`.)", "channel")  # fmt: skip
        before, packed = (name, part.packs) if part.encodes else (before, packed)
    return None


def shared_noise(method: Method, local: Local) -> Refusal | None:
    """Shares of noise that no sum puts together."""
    built = [build_part(name, options) for name, options in method.channel]
    for part, following in zip_longest(built, built[1:]):
        if not isinstance(part, DistributedNoise):
            continue
        if not isinstance(following, SecureSum):
            return Refusal(f"{part.name} gives each site a share of the noise of a secure sum, and none comes next.",
                           "Name `secure_sum` directly after it, or use `gaussian_noise`.", "channel")  # fmt: skip
        if part.colluding >= following.least:
            return Refusal(f"A sum may be one of {following.least} sites, and with {part.colluding} of them colluding "
                           f"no noise of {part.name} is left that counts.", "Give a smaller `colluding`, or "
                           "`secure_sum` a greater `least`.", "channel")  # fmt: skip
    return None
