"""`docs/operating.md` and the files in `deploy/`: what they say is what the program does, and other programs can read theirs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.core import Metric

from milepost.cli.commands import app
from milepost.cli.hosting import SHUTDOWN_SECONDS_MAX
from milepost.cli.settings import known_settings
from milepost.protocol.endpoints import ENDPOINTS, READY
from milepost.server import agreement
from milepost.server.metric_families import _ServerCollector
from milepost.server.metric_sources import METRICS_HELP
from milepost.server.readiness import COMMIT_SECONDS, DATABASE_SECONDS
from milepost.server.settings import variable_of
from support.served import HttpWorker, Served

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "operating.md").read_text()
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def words(*arguments: str) -> dict[str, Any]:
    """The options that a command line of `milepost` gives, read by the program itself; it must take them."""
    context = app.make_context("milepost", list(arguments), resilient_parsing=True)
    name, found, rest = app.resolve_command(context, list(arguments))
    assert found is not None, name
    return found.make_context(name, rest, parent=context).params


# --- the page ----------------------------------------------------------------------------------------------


def told(served: Served) -> list[Metric]:
    """Every metric that a server can tell, those of several servers too."""

    class Notified:
        is_notified = True

    of_server: Any = served.server._metrics
    sources = msgspec.structs.replace(of_server._sources, listener=Notified())
    return list(_ServerCollector(sources, of_server._clock).collect())


def rows() -> Iterator[list[str]]:
    table = PAGE.partition("<!-- metrics")[2].partition("<!-- end of metrics -->")[0]
    for line in table.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().strip("`") for cell in line.strip("| ").split(" | ")]


def test_the_table_of_metrics_is_that_of_the_server(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        worker = HttpWorker(served)
        worker.finish(worker.take(served.trigger()))
        served.trigger()
        found = told(served)
    finally:
        served.stop()
    labels: dict[str, str] = {}
    for metric in found:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        names = [label for sample in metric.samples[:1] for label in sample.labels if label != "le"]
        labels[name] = ", ".join(names)
    kinds = {f"{m.name}_total" if m.type == "counter" else m.name: m.type for m in found}
    # Told where other servers are only, of a number that the database of several has.
    kinds["milepost_announcements_behind"], labels["milepost_announcements_behind"] = "gauge", ""
    expected = [[name, kinds[name], labels[name], text] for name, text in METRICS_HELP.items()]
    lines = "\n".join(f"| `{name}` | {kind} | {label} | {text} |" for name, kind, label, text in expected)
    assert list(rows()) == expected, f"the table has to be:\n{lines}"


def test_expressions_speak_of_metrics_that_there_are() -> None:
    known = set(METRICS_HELP) | {
        f"{name}_{part}" for name in METRICS_HELP for part in ("bucket", "count", "sum")
    }
    found = set(re.findall(r"\bmilepost_[a-z_]+", PAGE.replace("deploy/", "")))
    assert found <= known, found - known
    # And the other way: none is left out.
    assert set(METRICS_HELP) <= found


def test_numbers_and_names_on_the_page_are_those_of_the_program() -> None:
    assert f"within {DATABASE_SECONDS:g} s" in PAGE
    assert f"for {COMMIT_SECONDS:g} s, although" in PAGE
    assert f"for {SHUTDOWN_SECONDS_MAX} s at most" in PAGE
    for name in (*agreement.AGREED, agreement.KEY):
        assert f"`{variable_of(name)}`" in PAGE
    for name in re.findall(r"MILEPOST_[A-Z_]+", PAGE):
        assert name in known_settings(), name
    reasons = set(re.findall(r"`([a-z]+)`", READY.summary.partition("details.reason")[2]))
    assert reasons == set(re.findall(r"^\| `([a-z]+)` \| (?!requests)", PAGE, re.MULTILINE)) & reasons
    assert reasons == {"draining", "database", "schema", "committer"}


# --- files for other programs ------------------------------------------------------------------------------


def test_the_compose_file_fits_the_program() -> None:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = found["services"]
    assert set(services) == {"postgres", "server-1", "server-2", "balancer", "worker"}
    assert services["postgres"]["image"] == "postgres:18"
    for name in ("server-1", "server-2"):
        server = services[name]
        options = words(*server["command"])
        assert options["port"] == 3030
        assert options["host"] == "0.0.0.0"
        assert _seconds(server["stop_grace_period"]) >= options["drain"] + SHUTDOWN_SECONDS_MAX + 5
        assert READY.path in server["healthcheck"]["test"][-1]
        assert set(server["environment"]) <= known_settings()
    worker = services["worker"]
    assert _seconds(worker["stop_grace_period"]) > words(*worker["command"])["grace"]
    assert set(worker["environment"]) <= known_settings()
    assert worker["environment"]["MILEPOST_API_URL"] == "http://balancer:8080"
    assert services["balancer"]["ports"] == ["8080:8080"]
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            assert other in services, name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in found["volumes"]
    build = services["server-1"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def _seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_units_fit_the_program(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    settings = dict(re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE))
    program, *arguments = settings["ExecStart"].split()
    assert program == "/opt/milepost/bin/milepost"
    options = words(*arguments)
    patience = options["drain"] + SHUTDOWN_SECONDS_MAX if arguments[0] == "server" else options["grace"]
    assert float(settings["TimeoutStopSec"]) >= patience + 5
    # It does not tell systemd that it is ready.
    assert settings["Type"] == "exec"
    example = DEPLOY / "systemd" / (Path(settings["EnvironmentFile"]).name + ".example")
    for line in example.read_text().splitlines():
        if line and not line.startswith("#"):
            assert line.partition("=")[0] in known_settings()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here (Debian: systemd)")
    tried = tmp_path / unit.name
    tried.write_text(text.replace(program, shutil.which("true") or "/bin/true"))
    said = subprocess.run(
        ["systemd-analyze", "verify", str(tried)], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


def test_kubernetes_asks_for_what_there_is() -> None:
    [block] = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "containers" in text]
    pod = yaml.safe_load(block)
    [container] = pod["containers"]
    options = words(*container["args"])
    assert container["readinessProbe"]["httpGet"] == {"path": READY.path, "port": options["port"]}
    assert pod["terminationGracePeriodSeconds"] >= options["drain"] + SHUTDOWN_SECONDS_MAX + 5
    assert container["readinessProbe"]["timeoutSeconds"] > DATABASE_SECONDS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key in one file, for programs that want to see one."""
    folder = tmp_path_factory.mktemp("certificate")
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here (Debian: openssl)")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=milepost.example -days 1"
    subprocess.run(
        [*command.split(), "-keyout", str(folder / "key"), "-out", str(folder / "chain")],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "chain").read_text() + (folder / "key").read_text())
    return both


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Caddyfile", "Caddyfile.tls"])
def test_caddy_reads_its_file(name: str) -> None:
    assert READY.path in (DEPLOY / name).read_text()
    if shutil.which("caddy") is None:
        pytest.skip("there is no Caddy here (Debian: caddy)")
    check("caddy", "validate", "--adapter", "caddyfile", "--config", DEPLOY / name)


def test_haproxy_reads_its_file_and_what_the_page_shows_of_it(certificate: Path, tmp_path: Path) -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    [shown] = re.findall(r"```haproxy\n(.*?)```", PAGE, re.DOTALL)
    assert shown in text
    assert f"httpchk GET {READY.path}\n" in text
    if shutil.which("haproxy") is None:
        pytest.skip("there is no HAProxy here (Debian: haproxy)")
    path = tmp_path / "haproxy.cfg"
    path.write_text(text.replace("/etc/ssl/milepost/milepost.pem", str(certificate)))
    check("haproxy", "-c", "-f", path)


def test_nginx_reads_its_file_and_what_the_page_shows_of_it(certificate: Path, tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    [shown] = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    assert shown in text
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx here (Debian: nginx-light)")
    for name in ("fullchain.pem", "key.pem"):
        text = text.replace(f"/etc/ssl/milepost/{name}", str(certificate))
    included = tmp_path / "milepost.conf"
    included.write_text(text)
    path = tmp_path / "nginx.conf"
    path.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {included}; }}"
    )
    check("nginx", "-t", "-p", tmp_path, "-c", path)


def test_every_path_that_is_asked_for_is_an_endpoint() -> None:
    paths = {endpoint.path for endpoint in ENDPOINTS}
    for path in (*DEPLOY.rglob("*"), ROOT / "docs" / "operating.md"):
        if path.is_file():
            for found in re.findall(r"/api/v\d/[a-z]+|(?<![\w/])/metrics\b", path.read_text()):
                assert found in paths, path
