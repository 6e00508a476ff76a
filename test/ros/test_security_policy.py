"""config/sros2/policy.xml allows what the node really does, and nothing more."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rclpy.node import Node
from vehicle import Vehicle, poll

from md_perception.ros.node import NODE_NAME, PerceptionNode
from md_perception.ros.security import cure

FILE = Path(__file__).parents[2] / "config" / "sros2" / "policy.xml"

# What sros2's policy.xsd, version 0.2.0, knows.
RULES = {"topics": {"publish", "subscribe"}, "services": {"reply", "request"}, "actions": {"call", "execute"}}


def profile() -> ElementTree.Element:
    (found,) = ElementTree.parse(FILE).getroot().iterfind("enclaves/enclave/profiles/profile")
    return found


def allowed(kind: str, rule: str) -> set[str]:
    """Return the names that the policy allows, resolved as sros2's permissions.xsl resolves them."""
    names = [
        expression.text or ""
        for group in profile().iterfind(kind)
        if group.get(rule) == "ALLOW"
        for expression in group
    ]
    assert len(names) == len(set(names))
    return {
        name if name.startswith("/") else f"/{NODE_NAME}{name[1:]}" if name.startswith("~") else f"/{name}"
        for name in names
    }


def used(node: Node, observer: Node) -> dict[str, set[str]]:
    """Return what a node does on the graph, as another node sees it."""
    name, namespace = node.get_name(), node.get_namespace()

    def names(found: list[tuple[str, list[str]]]) -> set[str]:
        return {topic for topic, _ in found}

    return {
        "publish": names(observer.get_publisher_names_and_types_by_node(name, namespace)),
        "subscribe": names(observer.get_subscriber_names_and_types_by_node(name, namespace)),
        "reply": names(observer.get_service_names_and_types_by_node(name, namespace)),
        "request": names(observer.get_client_names_and_types_by_node(name, namespace)),
    }


def test_the_policy_has_the_form_that_sros2_reads() -> None:
    root = ElementTree.parse(FILE).getroot()
    assert (root.tag, root.attrib) == ("policy", {"version": "0.2.0"})
    assert [enclave.get("path") for enclave in root.iterfind("enclaves/enclave")] == ["/md_perception"]
    assert profile().attrib == {"ns": "/", "node": NODE_NAME}
    for group in profile():
        assert group.attrib
        assert group.attrib.keys() <= RULES[group.tag]
        assert set(group.attrib.values()) == {"ALLOW"}
        assert {expression.tag for expression in group} == {group.tag[:-1]}
        for expression in group:  # a wildcard would allow more than a name
            assert expression.text
            assert set(expression.text) <= set("abcdefghijklmnopqrstuvwxyz_/~")


@pytest.mark.parametrize("compressed", [False, True])
def test_all_that_the_node_does_is_allowed_and_all_that_is_allowed_it_does(
    compressed: bool, start_node: Callable[..., PerceptionNode], vehicle: Vehicle
) -> None:
    transport = "compressed" if compressed else "raw"
    other = "/compressed" if not compressed else ""
    node = start_node(
        registration__source="camera_info_raw",
        rgb__transport=transport,
        thermal__transport=transport,
        use_sim_time=True,
    )
    assert vehicle.configure()
    assert vehicle.activate()
    expected = {
        "publish": allowed("topics", "publish"),
        "subscribe": allowed("topics", "subscribe") - {f"/rgb/image_raw{other}", f"/thermal/image_raw{other}"},
        "reply": allowed("services", "reply"),
        "request": allowed("services", "request"),
    }
    try:
        poll(lambda: used(node, vehicle.node) == expected, "the graph to be as the policy")
    finally:  # says what differs
        assert used(node, vehicle.node) == expected
    assert not list(profile().iterfind("actions"))


def test_the_node_joins_the_graph_in_the_enclave_that_it_is_given(vehicle: Vehicle) -> None:
    command = [sys.executable, "-m", "md_perception.ros.node", "--ros-args", "--enclave", "/md_perception"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        poll(
            lambda: (NODE_NAME, "/", "/md_perception") in vehicle.node.get_node_names_and_namespaces_with_enclaves(),
            "the node in its enclave",
        )
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def start_with_security(*arguments: str, **environment: str) -> str:
    """Start the node, which has to end by itself with exit status 1, and return its one line of log."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROS_SECURITY")}
    enforced = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}
    result = subprocess.run(
        [sys.executable, "-m", "md_perception.ros.node", "--ros-args", *arguments],
        env={**clean, **enforced, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if "[FATAL]" in line]
    assert "not started: " in line
    return output


def test_security_without_keys_ends_the_start_with_cause_and_cure(tmp_path: Path) -> None:
    # Also where the middleware was built without security: what is asked for and cannot be had is no silent no.
    output = start_with_security("--enclave", "/md_perception", ROS_SECURITY_KEYSTORE=str(tmp_path))
    assert f"SECURITY ERROR: directory '{tmp_path}/enclaves/md_perception' does not exist" in output
    assert f"`ros2 security create_enclave {tmp_path} /md_perception`; docs/security.md says how" in output


def test_security_on_a_middleware_without_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "enclaves" / "md_perception").mkdir(parents=True)
    output = start_with_security("--enclave", "/md_perception", ROS_SECURITY_KEYSTORE=str(tmp_path))
    if "security libraries" not in output:
        pytest.skip("this middleware has security")
    assert "the middleware was built without security" in output


@pytest.mark.parametrize(
    ("error", "environment", "expected"),
    [
        ("SECURITY ERROR: x", {"ROS_SECURITY_KEYSTORE": "/tmp"}, "the keystore /tmp has no keys for this enclave"),
        ("error not set", {}, "ROS_SECURITY_KEYSTORE, the folder of the keystore, is not set; docs/security.md"),
        ("SECURITY ERROR: x", {"ROS_SECURITY_KEYSTORE": "/nowhere"}, "is /nowhere, which is no folder"),
        ("no security libraries", {"ROS_SECURITY_KEYSTORE": "/nowhere"}, "built without security"),
        ("anything", {"ROS_SECURITY_KEYSTORE": "/tmp"}, "security is on (ROS_SECURITY_ENABLE); docs/security.md"),
    ],
)
def test_what_is_wrong_with_the_security_comes_with_its_cure(
    error: str, environment: dict[str, str], expected: str
) -> None:
    assert expected in cure(error, {"ROS_SECURITY_ENABLE": "true", **environment})
    assert cure(error, environment) == ""
