"""What lies in deploy/: the pins, the container's description, and the proxy before two replicas."""

import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def read_pins(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+==[^ ;\n]+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.M))


def test_the_pins_of_the_service_are_those_of_the_whole_without_torch():
    pins = read_pins("requirements-serve.lock")
    assert pins <= read_pins("requirements.lock")
    names = {pin.partition("==")[0] for pin in pins}
    assert {"fastapi", "uvicorn", "openvino", "prometheus-client", "python-multipart"} <= names
    assert not [name for name in names if name.startswith(("torch", "nvidia", "triton"))]
    text = (ROOT / "requirements-serve.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(pins)


def test_containers_run_as_somebody_else_and_answer_probes():
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "\nUSER vggkit\n" in lines
    assert "requirements-serve.lock" in lines
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose["services"]) == {"vggkit-1", "vggkit-2", "proxy"}
    assert all(each["read_only"] for name, each in compose["services"].items() if name != "proxy")
    deployment, *_ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def proxy(start, model_file, tmp_path):
    """Two replicas behind nginx with our configuration."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx, which is not installed here")
    replicas = [start(model_file, "--precision", "fp32", "--reload-seconds", "0") for _ in range(2)]
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for number, replica in enumerate(replicas, start=1):
        text = text.replace(f"vggkit-{number}:8000", replica.address.removeprefix("http://"))
    port = find_port()
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error; daemon off; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{text}\n}}\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while True:
            try:
                client.get("/ready")
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.02)
        yield client, replicas
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_a_replica_that_dies_behind_the_proxy_costs_no_request(proxy, images):
    client, replicas = proxy
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/metrics").status_code == 404
    assert client.get("/ready", headers={"origin": str(client.base_url)}).status_code == 200
    assert client.post("/predict", content=b"x" * (33 * 2**20)).status_code == 413
    statuses, stop = [], threading.Event()

    def send() -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not stop.is_set():
                files = {"files": ("a.png", images["a.png"])}
                statuses.append(own.post("/predict", files=files).status_code)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(statuses) < 30:
        time.sleep(0.01)
    replicas[0].process.kill()
    count = len(statuses)
    while len(statuses) < count + 60:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    found = replicas[1].client.get(replicas[1].url("/metrics")).text
    assert 'route="/predict",status="200"' in found
