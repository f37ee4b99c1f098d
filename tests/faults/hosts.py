"""Hosts on one machine: network namespaces with addresses of their own, joined by a bridge whose links can be slow."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A namespace.

    Args:
        name: Of the namespace.
        address: Its own.
        link: Its end of the cable, inside.
    """

    name: str
    address: str
    link: str

    def command(self, words: list[str]) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Take the cable out."""
        _run(*self.command(["ip", "link", "set", self.link, "down"]))

    def mend(self) -> None:
        """Put it in again."""
        _run(*self.command(["ip", "link", "set", self.link, "up"]))

    def slow(self, rate: str) -> None:
        """Let no more than so much out: "10mbit"."""
        shape = ["tc", "qdisc", "replace", "dev", self.link, "root", "tbf", "rate", rate]
        _run(*self.command([*shape, "burst", "64kb", "latency", "400ms"]))


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "ip and tc (iproute2) are not installed"
    try:
        with hosts(1) as made:
            made[0].slow("10mbit")
    except subprocess.CalledProcessError as error:
        return f"making network namespaces with slow links is not permitted ({error.stderr.strip()})"
    return None


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other; they are gone afterwards."""
    tag = uuid.uuid4().hex[:6]
    bridge, made = f"ssb{tag}", list[Host]()
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for number in range(count):
            host = Host(f"ss{tag}{number}", f"10.213.7.{number + 1}", f"ssi{tag}{number}")
            _run("ip", "netns", "add", host.name)
            made.append(host)
            outside = f"sso{tag}{number}"
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", host.link, "netns", host.name)
            _run("ip", "link", "set", outside, "master", bridge, "up")
            _run(*host.command(["ip", "address", "add", f"{host.address}/24", "dev", host.link]))
            _run(*host.command(["ip", "link", "set", host.link, "up"]))
            _run(*host.command(["ip", "link", "set", "lo", "up"]))
        yield made
    finally:
        for number, host in enumerate(made):
            with suppress(subprocess.CalledProcessError):  # the cable goes with either of its ends
                _run("ip", "link", "del", f"sso{tag}{number}")
            with suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", host.name)
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", bridge)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=20)
