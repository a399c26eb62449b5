"""Network namespaces for tests: a host, an internet that notes who comes, and what agents try."""

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar import Sidecar

AGENT_UID = 54_321
HOST, INTERNET = "10.231.7.1", "10.231.7.2"
HOST6, INTERNET6 = "fd23:7::1", "fd23:7::2"
OTHER_RESOLVER = "10.231.7.3"
CLONE_NEWNET = 0x40000000
PORTS = (22, 53, 80, 443, 853, 8080, 8443)


def cannot_lock_down() -> str:
    """Why this machine cannot show it; empty where it can."""
    missing = [tool for tool in ("ip", "nft", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, nftables, util-linux)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    tried = subprocess.run(
        ["unshare", "-n", "nft", "list", "tables"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else "network namespaces are not allowed here"


def run(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120, **options)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        Path("/proc/thread-self/ns/net").open() as old,
        Path("/run/netns", namespace).open() as new,
    ):
        assert libc.setns(new.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(old.fileno(), CLONE_NEWNET) == 0


@dataclass
class Internet:
    """Listens on all that an agent might try, and remembers who came."""

    arrived: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)
    process: "subprocess.Popen[str] | None" = None

    def note(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                self.ready.set()
            else:
                self.arrived.append(line.strip())


LISTENERS = """
import json, selectors, socket, sys
selector = selectors.DefaultSelector()
for family, address in json.loads(sys.argv[1]):
    for port in json.loads(sys.argv[2]):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(getattr(socket, family), kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
            if kind == socket.SOCK_STREAM: one.listen()
            selector.register(one, selectors.EVENT_READ, (address, port, kind))
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        address, port, kind = key.data
        if kind == socket.SOCK_STREAM:
            connection, _ = key.fileobj.accept(); connection.close(); name = "tcp"
        else:
            data, peer = key.fileobj.recvfrom(2000); key.fileobj.sendto(data, peer); name = "udp"
        print(name, address, port, flush=True)
"""


def as_agent(namespace: str, ca: Path, program: str, *words: str, **environment: str) -> Any:
    """Run Python as an agent's user in a namespace; what it prints last, read as JSON."""
    return last_json(command_of_agent(namespace, program, *words), ca, environment)


def command_of_agent(namespace: str, program: str, *words: str, uid: int = AGENT_UID) -> list[str]:
    return ["ip", "netns", "exec", namespace, "setpriv", f"--reuid={uid}",
            f"--regid={uid}", "--clear-groups", "--bounding-set=-all",
            sys.executable, "-c", program, *words]  # fmt: skip


def last_json(command: list[str], ca: Path, environment: dict[str, str]) -> Any:
    env = {"PATH": os.environ["PATH"], "HOME": "/", "SSL_CERT_FILE": str(ca), **environment}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def printed_rules(sidecar: Sidecar, *options: str) -> str:
    words = ("lockdown", "-c", str(sidecar.config_path), *options)
    return run(sys.executable, "-m", "extauthz", *words).stdout


def load(rules: str, rules_format: str, cgroups: Path | None = None) -> None:
    """Into this thread's network namespace; nft looks for `cgroups` in /sys/fs/cgroup only."""
    loader = ["nft", "-f", "-"] if rules_format == "nftables" else ["sh"]
    if cgroups is not None:
        mount = f'mount --bind {cgroups} /sys/fs/cgroup; exec "$@"'
        loader = ["unshare", "--mount", "sh", "-c", mount, "sh", *loader]
    run(*loader, input=rules)


def unload(rules_format: str) -> None:
    """All rules of this thread's network namespace, which is a test's own."""
    if rules_format == "nftables":
        run("nft", "flush", "ruleset")
        return
    for command in ("iptables", "ip6tables"):
        for table in ("filter", "nat"):
            run(command, "-w", "-t", table, "-F")
            run(command, "-w", "-t", table, "-X")


def readable_ca(stack: ExitStack, sidecar: Sidecar) -> Path:
    """A copy of the CA where another user can read it."""
    folder = Path(tempfile.mkdtemp(prefix="xa-ca-", dir="/tmp"))
    stack.callback(shutil.rmtree, folder)
    folder.chmod(0o755)
    ca = folder / "ca.pem"
    ca.write_bytes((sidecar.data_dir / "ca" / "ca.pem").read_bytes())
    ca.chmod(0o644)
    return ca


def unified_cgroups() -> Path | None:
    """Where cgroups of version 2 are mounted, if they can be made there."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    for _, place, kind, *_ in mounts:
        if kind == "cgroup2" and os.access(place, os.W_OK):
            with suppress(OSError):
                probe = Path(tempfile.mkdtemp(prefix="xa-probe-", dir=place))
                probe.rmdir()
                return Path(place)
    return None


def started_internet(stack: ExitStack, namespace: str) -> Internet:
    seen = Internet()
    with inside(namespace):
        addresses = [("AF_INET", INTERNET), ("AF_INET", OTHER_RESOLVER), ("AF_INET6", INTERNET6)]
        seen.process = subprocess.Popen(
            [sys.executable, "-c", LISTENERS, json.dumps(addresses), json.dumps(PORTS)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    stack.callback(ended, seen.process)
    threading.Thread(target=seen.note, daemon=True).start()
    assert seen.ready.wait(60)
    return seen


def made_namespaces(stack: ExitStack) -> tuple[str, str]:
    """Two namespaces with a cable between them; the first's names lead to the second."""
    host, internet = made_namespace(stack, "h"), made_namespace(stack, "i")
    cable(
        (host, (f"{HOST}/24", f"{HOST6}/64")),
        (internet, (f"{INTERNET}/24", f"{OTHER_RESOLVER}/24", f"{INTERNET6}/64")),
    )
    run("ip", "-n", host, "route", "add", "default", "via", INTERNET)
    run("ip", "-n", host, "-6", "route", "add", "default", "via", INTERNET6)
    write_names(stack, host)
    return host, internet


def made_namespace(stack: ExitStack, letter: str) -> str:
    name = f"xa{random.SystemRandom().randrange(10**6):06}{letter}"
    run("ip", "netns", "add", name)
    stack.callback(run, "ip", "netns", "del", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return name


def cable(one: tuple[str, tuple[str, ...]], other: tuple[str, tuple[str, ...]]) -> None:
    """Between two namespaces, each end (called like the other's namespace) with its addresses."""
    (first, _), (second, _) = one, other
    run("ip", "link", "add", f"{second}0", "netns", first, "type", "veth",
        "peer", "name", f"{first}0", "netns", second)  # fmt: skip
    for (name, own), link in ((one, f"{second}0"), (other, f"{first}0")):
        for address in own:
            nodad = ["nodad"] if ":" in address else []
            run("ip", "-n", name, "addr", "add", address, "dev", link, *nodad)
        run("ip", "-n", name, "link", "set", link, "up")


def write_names(stack: ExitStack, namespace: str) -> None:
    """The files of /etc that `ip netns exec` shows in this namespace."""
    etc = Path("/etc/netns", namespace)
    etc.mkdir(parents=True)
    stack.callback(shutil.rmtree, etc)
    (etc / "hosts").write_text(
        f"127.0.0.1 localhost\n{INTERNET} api.openai.com api.anthropic.com example.com\n"
    )
    (etc / "resolv.conf").write_text(f"nameserver {INTERNET}\n")


def ended(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# Each is (kind, address, port). Before the rules each gets an answer or a connection.
TRICKS: dict[str, tuple[str, str, int]] = {
    "http": ("tcp", INTERNET, 80),
    "another port": ("tcp", INTERNET, 8443),
    "a proxy": ("tcp", INTERNET, 8080),
    "ssh": ("tcp", INTERNET, 22),
    "quic": ("udp", INTERNET, 443),
    "quic over ipv6": ("udp", INTERNET6, 443),
    "https over ipv6": ("tcp", INTERNET6, 443),
    "http over ipv6": ("tcp", INTERNET6, 80),
    "a second resolver": ("udp", OTHER_RESOLVER, 53),
    "a second resolver over tcp": ("tcp", OTHER_RESOLVER, 53),
    "a resolver over ipv6": ("udp", INTERNET6, 53),
    "dns over tls": ("tcp", INTERNET, 853),
    "udp to a web port": ("udp", INTERNET, 80),
}
ESCAPES = """
import json, socket, sys
def attempt(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
        one.settimeout(2)
        try:
            one.connect((address, port))
            if kind == "udp":
                one.send(b"hello")
                one.recv(100)
        except OSError as error:
            return type(error).__name__
        return "out"
print(json.dumps({name: attempt(*trick) for name, trick in json.loads(sys.argv[1]).items()}))
"""
SDK = """
import json, openai
client = openai.OpenAI(max_retries=0)
try:
    answer = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", max_tokens=20, messages=[{"role": "user", "content": "hello"}])
except openai.APIStatusError as error:
    print(json.dumps([str(client.base_url), error.status_code, dict(error.response.headers)]))
else:
    print(json.dumps([str(client.base_url), 200, dict(answer.headers)]))
"""
TLS = """
import json, socket, ssl, sys
def attempt(address, name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, 443), 5) as plain:
            with context.wrap_socket(plain, server_hostname=name) as secure:
                return secure.version()
    except OSError as error:
        return type(error).__name__
print(json.dumps([attempt(*one) for one in json.loads(sys.argv[1])]))
"""
