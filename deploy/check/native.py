#!/usr/bin/env python3
"""Runs the services of compose.yaml as processes of this machine: their commands, their configuration and their health checks, with other
addresses and folders and nothing else changed. For machines without a container engine.

Usage: native.py TOOLS BINARY    TOOLS has install.sh, which prints a folder with Kafka's libs, and tool.sh, which runs its tools by name
Once with Kafka in KRaft mode, once with ZooKeeper and Kafka 3.9. Grafana and vLLM on hardware are left out; Prometheus runs where it is installed.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOLS, BINARY = (os.path.abspath(argument) for argument in sys.argv[1:3])
DOCUMENTS = 6
HEALTHY_WITHIN = 90


class Loader(yaml.SafeLoader):
    """With Compose's own tag, which takes away what it stands at."""


Loader.add_constructor("!reset", lambda loader, node: None)


def load(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return yaml.load(file, Loader)


def interpolated(value):
    value = re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda match: match[1] or "", str(value))
    return value.replace("$$", "$")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Machine:
    """The processes of one run, their addresses and their folder."""

    def __init__(self, kafka_version):
        self.folder = tempfile.mkdtemp(prefix="compose-native-")
        self.processes = []
        self.version = kafka_version
        ports = {name: free_port() for name in ("host", "containers", "controller", "zookeeper", "llm", "admin", "prometheus")}
        local = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self.ports, self.local = ports, local
        self.places = [
            (r"(0\.0\.0\.0|localhost|kafka):9092\b", local["host"]),
            (r"(0\.0\.0\.0|kafka):29092\b", local["containers"]),
            (r"(0\.0\.0\.0|kafka):29093\b", local["controller"]),
            (r"zookeeper:2181\b", local["zookeeper"]),
            (r"clientPort=2181\b", f"clientPort={ports['zookeeper']}"),
            (r"/dev/tcp/127\.0\.0\.1/2181\b", f"/dev/tcp/127.0.0.1/{ports['zookeeper']}"),
            (r"(0\.0\.0\.0|127\.0\.0\.1|llm):8000\b", local["llm"]),
            (r"(0\.0\.0\.0|processor):9100\b", local["admin"]),
            (r"localhost:9090\b", local["prometheus"]),
            (r"/opt/kafka/bin/([\w-]+)\.sh", rf"{TOOLS}/tool.sh \1"),
            (r"^/kafka-llm-processor$", BINARY),
            (r"^/prometheus\b|(?<==)/prometheus\b", f"{self.folder}/prometheus"),
            (r"/etc/prometheus/", f"{self.folder}/"),
        ]

    def here(self, value, data=None):
        """With the addresses and folders of this machine."""
        value = interpolated(value)
        for pattern, place in self.places:
            value = re.sub(pattern, place, value, flags=re.MULTILINE)
        return value.replace("/var/lib/kafka/data", f"{self.folder}/{data}") if data else value

    def environment(self, service):
        given = {name: self.here(value) for name, value in (service.get("environment") or {}).items()}
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME", "XDG_CACHE_HOME") if name in os.environ}
        return {**kept, "KAFKA_VERSION": self.version, **given}

    def write(self, name, text):
        file = os.path.join(self.folder, name)
        with open(file, "w", encoding="utf-8") as out:
            out.write(text)
        return file

    def start(self, name, command, environment=None):
        with open(os.path.join(self.folder, f"{name}.log"), "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self.processes.append((name, process))
        return process

    def java(self, *arguments):
        libs = subprocess.run([f"{TOOLS}/install.sh", self.version], check=True, capture_output=True, text=True)
        classes = libs.stdout.split()[-1] + "/libs/*"
        return ["java", "-Xmx512m", "-cp", classes, *arguments]

    def healthy(self, name, service):
        """Runs the service's own check until it passes."""
        kind, *command = service["healthcheck"]["test"]
        command = [self.here(word) for word in command]
        if kind == "CMD-SHELL":
            command = ["bash", "-c", *command]
        began = time.monotonic()
        while True:
            checked = subprocess.run(command, env=self.environment(service), capture_output=True, text=True, check=False)
            if checked.returncode == 0:
                break
            ended = [name for name, process in self.processes if process.poll() is not None]
            if ended or time.monotonic() - began > HEALTHY_WITHIN:
                self.fail(f"{name} is not healthy; ended: {ended}: {checked.stdout}{checked.stderr}")
            time.sleep(0.5)
        shown = " ".join(command).replace(TOOLS, "…").replace(BINARY, "/kafka-llm-processor").replace(self.folder, "…")
        print(f"  {name:<10} healthy after {time.monotonic() - began:4.1f} s: {shown}")

    def fail(self, problem):
        for name, _ in self.processes:
            with open(os.path.join(self.folder, f"{name}.log"), encoding="utf-8", errors="replace") as log:
                print(f"--- {name}\n" + "".join(log.readlines()[-15:]), file=sys.stderr)
        sys.exit(f"FAILED: {problem}")

    def end(self):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def kraft(machine, services):
    kafka = services["kafka"]
    # As the image does it: KAFKA_NODE_ID is node.id.
    given = {name: machine.here(value, "kafka") for name, value in kafka["environment"].items()}
    properties = [f"{name[6:].lower().replace('_', '.')}={value}" for name, value in given.items() if name.startswith("KAFKA_")]
    file = machine.write("server.properties", "\n".join(properties) + "\n")
    formatted = machine.java("kafka.tools.StorageTool", "format", "-t", given["CLUSTER_ID"], "-c", file)
    subprocess.run(formatted, check=True, capture_output=True)
    machine.start("kafka", machine.java("kafka.Kafka", file))


def zookeeper(machine, services, override):
    contents = {name: config["content"] for name, config in override["configs"].items()}
    for name, kind, main in (
        ("zookeeper", "zookeeper-properties", "org.apache.zookeeper.server.quorum.QuorumPeerMain"),
        ("kafka", "kafka-properties", "kafka.Kafka"),
    ):
        file = machine.write(f"{kind}.txt", machine.here(contents[kind], name))
        machine.start(name, machine.java(main, file))
        if name == "zookeeper":
            machine.healthy(name, override["services"][name])


def prometheus(machine, service):
    if not shutil.which("prometheus"):
        print("  prometheus is not installed: left out")
        return
    for name in ("prometheus.yml", "rules.yml"):
        with open(os.path.join(ROOT, "deploy/prometheus", name), encoding="utf-8") as file:
            machine.write(name, machine.here(file.read()))
    command = ["prometheus", f"--web.listen-address={machine.local['prometheus']}"]
    machine.start("prometheus", command + [machine.here(word) for word in service["command"]])
    machine.healthy("prometheus", service)
    query = urllib.parse.quote('up{job=~"kafka-llm-processor|vllm"} == 1')
    deadline = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"http://{machine.local['prometheus']}/api/v1/query?query={query}") as answer:
            up = [sample["metric"]["job"] for sample in json.load(answer)["data"]["result"]]
        if len(up) == 2:
            break
        if time.monotonic() > deadline:
            machine.fail(f"Prometheus scrapes only {up}")
        time.sleep(0.5)
    print(f"  prometheus scrapes {' and '.join(sorted(up))}")


def everything(machine, services, monitoring):
    machine.healthy("kafka", services["kafka"])

    topics = services["topics"]
    words = [*topics["entrypoint"], *topics["command"]]
    subprocess.run([machine.here(word) for word in words], env=machine.environment(topics), check=True, capture_output=True)
    described = [f"{TOOLS}/tool.sh", "kafka-topics", "--bootstrap-server", machine.local["host"], "--describe"]
    described = subprocess.run(described, env=machine.environment(topics), check=True, capture_output=True, text=True).stdout
    made = re.findall(r"Topic: (\S+)\s+TopicId: \S+\s+PartitionCount: (\d+)", described)
    print("  topics    ", ", ".join(f"{name} ({partitions})" for name, partitions in sorted(made)))
    assert {"financial-documents", "llm-results", "llm-dead-letters"} <= {name for name, _ in made}, described
    assert re.search(r"Topic: llm-dead-letters\s.*retention.ms=-1", described), described

    model = services["vllm-sim"]
    machine.start("vllm-sim", [BINARY, *(machine.here(word) for word in model["command"])], machine.environment(model))
    machine.healthy("vllm-sim", model)

    processor = services["processor"]
    environment = machine.environment(processor)
    running = machine.start("processor", [BINARY, "run"], environment)
    machine.healthy("processor", processor)
    subprocess.run([BINARY, "status", "--live"], env=environment, check=True, capture_output=True)

    for command in (["produce", "--count", str(DOCUMENTS)], ["results", "--follow", "--count", str(DOCUMENTS), "--json"]):
        done = subprocess.run([BINARY, *command], env=environment, check=True, capture_output=True, text=True, timeout=60)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(results) != DOCUMENTS:
        machine.fail(f"{len(results)} of {DOCUMENTS} results")
    print(f"  processor  {len(results)} documents, {len(results)} results, {environment['KLP_PROCESSING__GUARANTEE']}")
    if monitoring:
        prometheus(machine, services["prometheus"])

    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    code = running.wait(timeout=int(processor["stop_grace_period"].rstrip("s")))
    print(f"  processor  drained after SIGTERM in {time.monotonic() - began:.1f} s, exit code {code}")
    assert code == 0


def main():
    services = load("compose.yaml")["services"]
    override = load("deploy/compose.zookeeper.yaml")
    for title, image in (("KRaft", services["kafka"]["image"]), ("ZooKeeper", override["services"]["kafka"]["image"])):
        version = interpolated(image).rsplit(":", 1)[1]
        print(f"{title}, Kafka {version}")
        machine = Machine(version)
        try:
            if title == "KRaft":
                kraft(machine, services)
            else:
                zookeeper(machine, services, override)
            everything(machine, services, title == "KRaft")
        finally:
            machine.end()


main()
