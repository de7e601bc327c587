"""The commands for keys and certificates of a consortium's parties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from polyclinic.federation.trust.answers import Answer

#: What to do next; standard output is for what a command was asked for.
console = Console(stderr=True, highlight=False, soft_wrap=True)

Kits = Annotated[Path, typer.Option(help="The folder of the kits, with the authority.")]
KitFolder = Annotated[Path, typer.Option(help="The folder of the start-up kit.")]
Revoked = Annotated[Path, typer.Argument(metavar="FILE", help="The list, revoked.json.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The party's name in the consortium file.")]


def add_to(federation_app: typer.Typer, coordinator_app: typer.Typer, site_app: typer.Typer) -> None:
    """Add the commands to those of a consortium, of a coordinator and of a site."""
    for name, command in (
        ("request", request), ("sign", sign), ("join", join), ("renew", renew), ("revoke", revoke),
    ):  # fmt: skip
        federation_app.command(name)(command)
    coordinator_app.command("revoked")(take_list)
    site_app.command("revoked")(take_list_at_site)


def request(
    name: Annotated[str, typer.Option(help="The party's name in the consortium file.")],
    role: Annotated[str, typer.Option(help="site or researcher.")],
    out: Annotated[Path, typer.Option(help="Folder of the kit to be; it is made.")],
) -> None:
    """Make a party's own key, and a request for its certificate; the key stays where it is made."""
    from polyclinic.federation.trust.requests import make_request

    file, key = make_request(name, role, out)
    print(f"Request: {file}\nFingerprint of the key: {key}")
    console.print("Send the request to who keeps the authority, and read out the fingerprint on the telephone.")


def sign(
    file: Annotated[Path, typer.Argument(metavar="REQUEST", help="The request of a party.")],
    kits: Kits,
    again: Annotated[bool, typer.Option("--again", help="The party may have another key than before.")] = False,
) -> None:
    """Sign a party's request; the answer is its kit without the key."""
    from polyclinic.federation.trust.answers import sign_request

    _print(sign_request(file, kits, again=again))
    console.print("Compare the key's fingerprint with the party on the telephone, before you send the answer.")


def join(
    answer: Annotated[Path, typer.Argument(metavar="ANSWER", help="What who keeps the authority sent.")],
    kit: Annotated[Path, typer.Option(help="The folder with the key: that of the request, or the kit.")],
) -> None:
    """Put the answer to a request, or a certificate that was renewed, together with the key."""
    from polyclinic.federation.trust.answers import join as put_together

    found = put_together(answer, kit)
    print(f"Kit of {found.name}: {found.path}\nFingerprint of the authority: {found.authority}")
    print(f"Valid until: {found.until}")
    console.print("Compare the fingerprint on the telephone with who keeps the authority, before you start.")


def renew(
    name: Name,
    kits: Kits,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="For how long; else as in the file.")] = None,
) -> None:
    """Sign another certificate for the key that a party has."""
    from polyclinic.federation.trust.answers import renew as signed_again

    _print(signed_again(name, kits, days))
    console.print("The party puts it in with `polyclinic federation join`, and starts again.")


def revoke(name: Name, kits: Kits) -> None:
    """Revoke all certificates that a party was given, and write the list for the coordinator."""
    from polyclinic.federation.trust.revoked import revoke as put_into_list

    print(f"List: {put_into_list(kits, name)}")
    console.print("It holds once it is in the coordinator's kit: `polyclinic coordinator revoked`.")
    console.print("In secure sums sites refuse by themselves whom they know of: `polyclinic site revoked`.")


def take_list(file: Revoked, kit: KitFolder) -> None:
    """Refuse the parties in a list of revoked certificates; a coordinator that runs hangs up on them."""
    _take(file, kit, "coordinator")


def take_list_at_site(file: Revoked, kit: KitFolder) -> None:
    """Refuse signatures of the parties in a list of revoked certificates, whatever the coordinator does."""
    _take(file, kit, "site")


def _take(file: Path, kit: Path, role: str) -> None:
    from polyclinic.federation.kit import Kit
    from polyclinic.federation.trust.revoked import take_revoked

    print(f"Revoked: {', '.join(take_revoked(file, Kit.read(kit, role)))}")


def _print(answer: Answer) -> None:
    print(f"Answer: {answer.path}\nValid until: {answer.until}")
    print(f"Fingerprint of the key: {answer.key}\nFingerprint of the authority: {answer.authority}")
