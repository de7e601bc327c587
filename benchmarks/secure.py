"""What a secure sum costs: masks a second, and a round against adding the same whole numbers.

All parties take turns in one process on one core. *Masks* is how much of a vector gets a mask in a second, drawn and
added; beside it the same vector added to another one, which reads twice and writes once. *Round* is one of 4 sites with
vectors of 100 MB, with and without one that drops out: seconds of one site and of the server, beside adding the plain
vectors at the server. *Encrypted* is the same work by encryption, of a million numbers, beside masks. Medians of five.

    python benchmarks/secure.py [--megabytes 100]
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from polyclinic.channel.ckks import Key, add_, check
from polyclinic.secure import Ring, ServerRound, SiteRound, Terms, fit_shape
from polyclinic.secure.masks import add_masks_

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object]) -> float:
    """Of five calls, after one that does not count."""
    work()
    return statistics.median(seconds(work) for _ in range(REPEATS))


def masks(dtype: torch.dtype, size: int) -> str:
    """A line on a vector of so many bytes."""
    vector = torch.zeros(size // dtype.itemsize, dtype=dtype)
    other = torch.ones_like(vector)
    key = secrets.token_bytes(32)
    one, plain = median(lambda: add_masks_(vector, [(key, 1)])), median(lambda: vector.add_(other))
    return f"{dtype!s:12} masks {size / one / 1e6:6.0f} MB/s   {one / plain:4.1f} x adding a vector"


def encoding(size: int) -> str:
    """A line on turning floats into whole numbers and back."""
    values, ring = torch.rand(size // 4), Ring.fit(1.0, 4)
    encoded = ring.encode(values, 1.0)
    there, back = median(lambda: ring.encode(values, 1.0)), median(lambda: ring.decode(encoded))
    return f"float32 to int32 {size / there / 1e6:6.0f} MB/s   and back {size / back / 1e6:6.0f} MB/s"


def play(vectors: dict[str, Tensor], gone: int) -> tuple[float, float]:
    """Seconds of one site and of the server in a round."""
    names = tuple(vectors)
    (length,), dtype = next(iter(vectors.values())).shape, next(iter(vectors.values())).dtype
    terms = Terms(secrets.token_bytes(32), 1, 0, names, fit_shape(len(names)), 8 * dtype.itemsize, length)
    spent = dict.fromkeys(("site", "server"), 0.0)

    def timed(party: str, work: Callable[..., object], *given: object) -> object:
        start = time.perf_counter()
        found = work(*given)
        spent[party] += time.perf_counter() - start
        return found

    server = ServerRound(terms)
    sites = {name: SiteRound(terms, name) for name in names}
    keys = timed("server", server.keys, {name: timed("site", site.advertise) for name, site in sites.items()})
    boxes = timed("server", server.boxes, {name: timed("site", site.share, keys) for name, site in sites.items()})
    for name in names[gone:]:
        masked = vectors[name].clone()
        timed("server", server.add, name, timed("site", sites[name].mask, masked, boxes[name]))
    left = timed("server", server.survivors)
    agreed = timed("server", server.signatures, {name: timed("site", sites[name].agree, left) for name in left})
    total = timed("server", server.sum, {name: timed("site", sites[name].unmask, agreed) for name in left})
    assert torch.equal(total, added([vectors[name] for name in left]))
    return spent["site"] / len(left), spent["server"]


def added(vectors: list[Tensor]) -> Tensor:
    """The plain sum."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total


def rounds(dtype: torch.dtype, size: int, gone: int) -> str:
    """A line on a round of 4 sites."""
    vectors = {f"site {n}": torch.randint(-(2**30), 2**30, (size // dtype.itemsize,), dtype=dtype) for n in range(4)}
    played = [play(vectors, gone) for _ in range(REPEATS)]
    site, server = (statistics.median(column) for column in zip(*played, strict=True))
    plain = median(lambda: added(list(vectors.values())[gone:]))
    return (
        f"{dtype!s:12} 4 sites, {gone} dropped out: site {1000 * site:5.0f} ms, server {1000 * server:5.0f} ms, adding "
        f"{1000 * plain:5.0f} ms   server {server / plain:4.1f} x"
    )


def encrypted(count: int) -> list[str]:
    """Lines on a sum of encrypted numbers, beside whole numbers of 64 bits with three masks, as in a sum of 4 sites."""
    values, key = torch.rand(count), Key.new()
    ring, masks = Ring.fit(1.0, 4, bits=64), [(secrets.token_bytes(32), 1) for _ in range(4)]
    sent, masked = key.encrypt(values.double()), ring.encode(values, 1.0)
    total, other = check(sent, count).clone(), masked.clone()
    pairs = {
        "a site's update": (
            lambda: key.encrypt(values.double()), lambda: add_masks_(ring.encode(values, 1.0), masks)
        ),
        "adding one at the server": (lambda: add_(total, check(sent, count)), lambda: other.add_(masked)),
        "reading the sum": (
            lambda: key.decrypt(total, count), lambda: ring.decode(add_masks_(other, masks))
        ),
    }  # fmt: skip
    lines = [f"a key of {len(key.text) / 1e3:.0f} kB: made in {1000 * median(Key.new):.0f} ms"]
    for what, (one, two) in pairs.items():
        slow, fast = median(one), median(two)
        lines.append(f"{what:24} encrypted {1000 * slow:5.0f} ms, masked {1000 * fast:4.0f} ms   {slow / fast:5.1f} x")
    bytes_ = [tensor.numel() * tensor.itemsize / (4 * count) for tensor in (sent, masked)]
    return [*lines, f"bytes, of 32-bit numbers: encrypted {bytes_[0]:.1f} x, masked {bytes_[1]:.1f} x"]


def main(megabytes: Annotated[int, typer.Option(min=1, help="Of a vector.")] = 100) -> None:
    """Print the lines."""
    torch.set_num_threads(1)
    size = 1_000_000 * megabytes
    for dtype in (torch.int32, torch.int64):
        print(masks(dtype, size))
    print(encoding(size))
    for dtype in (torch.int32, torch.int64):
        for gone in (0, 1):
            print(rounds(dtype, size, gone))
    print(*encrypted(1_000_000), sep="\n")


if __name__ == "__main__":
    typer.run(main)
