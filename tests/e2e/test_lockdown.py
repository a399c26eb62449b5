"""`extauthz lockdown` in network namespaces: a host with agents, and an internet that notes it all.

The sidecar runs in the first as root, agents as another user, with an unmodified SDK that knows no
base URL. The second has the provider, and listens to everything that must never arrive.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sidecar import Sidecar, agent, key_of, running_sidecar

AGENT_UID = 54_321
HOST, INTERNET = "10.231.7.1", "10.231.7.2"
HOST6, INTERNET6 = "fd23:7::1", "fd23:7::2"
OTHER_RESOLVER = "10.231.7.3"
CLONE_NEWNET = 0x40000000
PORTS = (22, 53, 80, 443, 853, 8080, 8443)


def _cannot() -> str:
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


pytestmark = pytest.mark.skipif(bool(_cannot()), reason=_cannot() or "it can")


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


@dataclass
class World:
    """Both namespaces, with the sidecar in the first."""

    host: str
    internet: str
    seen: Internet
    sidecar: Sidecar
    folder: Path

    def as_agent(self, program: str, *words: str, **environment: str) -> Any:
        """Run Python as the agent's user on the host; what it prints last, read as JSON."""
        command = ["ip", "netns", "exec", self.host, "setpriv", f"--reuid={AGENT_UID}",
                   f"--regid={AGENT_UID}", "--clear-groups", "--bounding-set=-all",
                   sys.executable, "-c", program, *words]  # fmt: skip
        ca = self.folder / "ca.pem"
        env = {"PATH": os.environ["PATH"], "HOME": "/", "SSL_CERT_FILE": str(ca), **environment}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(
    scope="module", params=["nftables", pytest.param("iptables", marks=pytest.mark.full)]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "iptables" and shutil.which("ip6tables-restore") is None:
        pytest.skip("needs iptables")
    with ExitStack() as stack:
        host, internet = made_namespaces(stack)
        seen = Internet()
        with inside(internet):
            addresses = [
                ("AF_INET", INTERNET),
                ("AF_INET", OTHER_RESOLVER),
                ("AF_INET6", INTERNET6),
            ]
            seen.process = subprocess.Popen(
                [sys.executable, "-c", LISTENERS, json.dumps(addresses), json.dumps(PORTS)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        stack.callback(ended, seen.process)
        threading.Thread(target=seen.note, daemon=True).start()
        assert seen.ready.wait(60)
        stack.enter_context(inside(host))
        sidecar = stack.enter_context(
            running_sidecar(
                start=False,
                agents=agent("bot", "10.00"),
                intercept={"listen": "127.0.0.1:10443", "hosts": {
                    "openai": ["api.openai.com"], "anthropic": ["api.anthropic.com"]}},
                listen={"egress": "127.0.0.1:10000"},
            )
        )  # fmt: skip
        sidecar.write_config()
        extauthz = [sys.executable, "-m", "extauthz"]
        run(*extauthz, "ca", "init", "-c", str(sidecar.config_path))
        sidecar.start()
        made = Path(stack.enter_context(contextlib.nullcontext(f"/tmp/{host}")))
        made.mkdir(mode=0o755)
        stack.callback(shutil.rmtree, made)
        (made / "ca.pem").write_bytes((sidecar.data_dir / "ca" / "ca.pem").read_bytes())
        (made / "ca.pem").chmod(0o644)
        world = World(host, internet, seen, sidecar, made)
        open_before = world.as_agent(ESCAPES, json.dumps(TRICKS))
        assert set(open_before.values()) == {"out"}, "the tricks must work where nothing forbids"
        seen.arrived.clear()
        rules = run(
            *extauthz, "lockdown", "-c", str(sidecar.config_path), "--uid", str(AGENT_UID),
            "--resolver", INTERNET, "--format", request.param,
        ).stdout  # fmt: skip
        loader = ["nft", "-f", "-"] if request.param == "nftables" else ["sh"]
        run(*loader, input=rules)
        run(*loader, input=rules)  # which changes nothing
        yield world


def made_namespaces(stack: ExitStack) -> tuple[str, str]:
    """Two namespaces with a cable between them; the first's names lead to the second."""
    mark = f"xa{random.SystemRandom().randrange(10**6):06}"
    host, internet = f"{mark}h", f"{mark}i"
    for name in (host, internet):
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "del", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "link", "add", f"{mark}0", "netns", host, "type", "veth",
        "peer", "name", f"{mark}1", "netns", internet)  # fmt: skip
    for name, link, own in (
        (host, f"{mark}0", (f"{HOST}/24", f"{HOST6}/64")),
        (internet, f"{mark}1", (f"{INTERNET}/24", f"{OTHER_RESOLVER}/24", f"{INTERNET6}/64")),
    ):
        for address in own:
            nodad = ["nodad"] if ":" in address else []
            run("ip", "-n", name, "addr", "add", address, "dev", link, *nodad)
        run("ip", "-n", name, "link", "set", link, "up")
    run("ip", "-n", host, "route", "add", "default", "via", INTERNET)
    run("ip", "-n", host, "-6", "route", "add", "default", "via", INTERNET6)
    etc = Path("/etc/netns", host)  # what `ip netns exec` shows as /etc
    etc.mkdir(parents=True)
    stack.callback(shutil.rmtree, etc)
    (etc / "hosts").write_text(
        f"127.0.0.1 localhost\n{INTERNET} api.openai.com api.anthropic.com example.com\n"
    )
    (etc / "resolv.conf").write_text(f"nameserver {INTERNET}\n")
    return host, internet


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


def test_an_unmodified_sdk_with_its_default_url_is_budgeted(world: World) -> None:
    before, billed = world.sidecar.balance("bot")[0], world.sidecar.sandbox.total_nanousd()
    url, status, headers = world.as_agent(SDK, OPENAI_API_KEY=key_of("bot"))

    assert (url, status) == ("https://api.openai.com/v1/", 200)
    assert headers["x-budget-decision-id"]
    world.sidecar.until_settled()
    spent = world.sidecar.balance("bot")[0] - before
    assert spent == world.sidecar.sandbox.total_nanousd() - billed > 0
    assert "tcp 10.231.7.2 443" not in world.seen.arrived


def test_a_key_of_the_provider_itself_is_nobodys(world: World) -> None:
    _, status, headers = world.as_agent(SDK, OPENAI_API_KEY="sk-smuggled")

    assert (status, headers["x-budget-reason"]) == (401, "unknown_agent")


@pytest.mark.parametrize("tricks", [TRICKS], ids=["all"])
def test_nothing_else_gets_out(world: World, tricks: dict[str, tuple[str, str, int]]) -> None:
    world.seen.arrived.clear()

    results = world.as_agent(ESCAPES, json.dumps(tricks))

    assert [name for name, result in results.items() if result == "out"] == []
    assert world.seen.arrived == []


def test_port_443_of_any_address_ends_here_whatever_name_is_asked_for(world: World) -> None:
    world.seen.arrived.clear()
    tried = [(INTERNET, None), (INTERNET, "example.com"), (OTHER_RESOLVER, "cloudflare-dns.com"),
             (INTERNET, "api.openai.com"), ("192.0.2.9", "api.openai.com")]  # fmt: skip

    answers = world.as_agent(TLS, json.dumps(tried))

    assert all("Error" in answer or "Reset" in answer for answer in answers[:3]), answers
    assert [answer[:5] for answer in answers[3:]] == ["TLSv1"] * 2, (
        "by Envoy, for a provider's name"
    )
    assert world.seen.arrived == []


def test_the_services_of_this_host_are_not_the_agents(world: World) -> None:
    ports = [
        int(world.sidecar.config["listen"][name].split(":")[1]) for name in ("admin", "metrics")
    ]

    results = world.as_agent(ESCAPES, json.dumps({str(p): ("tcp", "127.0.0.1", p) for p in ports}))

    assert "out" not in results.values()


def test_the_configured_resolver_answers(world: World) -> None:
    tricks = {"udp": ("udp", INTERNET, 53), "tcp": ("tcp", INTERNET, 53)}

    assert world.as_agent(ESCAPES, json.dumps(tricks)) == {"udp": "out", "tcp": "out"}


def test_envoys_own_user_gets_out(world: World) -> None:
    done = run(sys.executable, "-c", ESCAPES, json.dumps({"https": ("tcp", INTERNET, 443)}))

    assert json.loads(done.stdout) == {"https": "out"}
