"""Names for patients that tell nothing without the site's secret."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from polyclinic.errors import DataError

SALT_FILE = "salt.txt"
_HEAD = """\
# The secret behind the subject names (S...) of the manifest in this folder.
# It must stay at the site: who has it can find out which patient a name stands for.
# Keep it as long as the manifest: with it, the same patients get the same names again.
"""


def pseudonym(subject: str, salt: str) -> str:
    """A name for a patient: ``S`` and the first 10 hexadecimal digits of SHA-256 over salt and subject.

    Both are preceded by their length, so that no two pairs look alike to the hash.

    >>> pseudonym("002_S_0413", "salt") == pseudonym("002_S_0413", "salt") != pseudonym("002_S_0413", "pepper")
    True
    """
    digest = hashlib.sha256()
    for text in (salt, subject):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return "S" + digest.hexdigest()[:10]


def study_salt(folder: Path) -> str:
    """The secret of a study's folder, made at the first call and kept in ``salt.txt``, which only its owner may read.

    Raises:
        DataError: P201 when the file holds no salt or can't be read or written.
    """
    path = folder / SALT_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_salt(path)
    except OSError as error:
        raise DataError(
            "P201", f"{SALT_FILE} can't be written ({error.strerror}).", "Choose a folder that you may write to."
        ) from None
    salt = secrets.token_hex(32)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{_HEAD}{salt}\n")
    return salt


def _read_salt(path: Path) -> str:
    hint = "Put back the file that belongs to the manifest, or delete it to give all subjects new names."
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise DataError("P201", f"{SALT_FILE} can't be read ({why}).", hint) from None
    salts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(salts) != 1 or len(salts[0]) < 16:
        raise DataError("P201", f"{SALT_FILE} holds no salt of at least 16 characters.", hint)
    return salts[0]
