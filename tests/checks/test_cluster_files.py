import importlib
import os
import re
from pathlib import Path

import pytest
import yaml

from cpo_ray.checks.cluster_files import PLACEHOLDER, check_cluster_file, find_unedited
from cpo_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "cluster.yaml", *sorted((ROOT / "kuberay").glob("*.yaml"))]
LAUNCHER = ROOT / "cluster.yaml"


def status(checks):
    return {check.name: check.status for check in checks}


def edited(text):
    return text.replace(PLACEHOLDER, "value")


@pytest.fixture
def home(tmp_path):
    """The home of a user who has a token."""
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    return tmp_path / "home"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_edit_comments_and_placeholders_are_on_the_same_lines(file):
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.lstrip().startswith("#"):
            assert (PLACEHOLDER in line) == ("# EDIT: " in line), f"{file.name}:{number}: {line}"


def test_unedited_lines_are_found():
    text = "a: 1\nb: CHANGE-ME  # EDIT: your zone\n# c: CHANGE-ME\nd: x  # EDIT: was CHANGE-ME\ne: CHANGE-ME\n"
    assert list(find_unedited(text)) == [
        (2, "b: CHANGE-ME", "your zone"),
        (5, "e: CHANGE-ME", "put your own value here"),
    ]


def test_a_shipped_file_fails_only_at_its_placeholders(home):
    checks = check_cluster_file(LAUNCHER, home)
    assert {check.name for check in checks if check.status == "fail"} == {
        f"cluster.yaml:{number}" for number, *_ in find_unedited(LAUNCHER.read_text())
    }
    assert sum(check.status == "fail" for check in checks) == 9
    assert all(check.remedy for check in checks if check.status == "fail")


def test_an_edited_file_is_fine(tmp_path, home):
    key = tmp_path / "key.pem"
    key.write_text("private")
    key.chmod(0o600)
    file = tmp_path / "cluster.yaml"
    file.write_text(edited(LAUNCHER.read_text()).replace("ssh_private_key: value", f"ssh_private_key: {key}"))
    assert set(status(check_cluster_file(file, home)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard"),
        ("  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "Ray token"),
        ("max_workers: 2", "max_workers: two", "cluster.yaml schema"),
        ("idle_timeout_minutes: 10", "idle_minutes: 10", "cluster.yaml schema"),
        ("head_node_type: head", "head_node_type: hat", "cluster.yaml schema"),
    ],
)
def test_an_invalid_or_open_launcher_file_fails(tmp_path, home, old, new, failing):
    text = LAUNCHER.read_text()
    assert old in text
    file = tmp_path / "cluster.yaml"
    file.write_text(edited(text.replace(old, new)))
    checks = [check for check in check_cluster_file(file, home) if check.name != "SSH key"]
    assert [check.name for check in checks if check.status == "fail"] == [failing]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "just text\n", "- a\n- b\n", "12\n", "a: 1\n---\n- b\n"])
def test_a_file_that_describes_no_cluster_is_refused(tmp_path, home, text):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.yaml is not a cluster description"):
        check_cluster_file(file, home)


@pytest.mark.parametrize(
    "section", ["auth", "provider", "file_mounts", "head_start_ray_commands", "available_node_types"]
)
@pytest.mark.parametrize("value", ["", "text", "5"])
def test_a_section_of_the_wrong_type_fails_the_schema(tmp_path, home, section, value):
    text = re.sub(rf"^{section}:.*\n(?:[ #].*\n)*", f"{section}: {value}\n", LAUNCHER.read_text(), flags=re.MULTILINE)
    file = tmp_path / "cluster.yaml"
    file.write_text(edited(text))
    (failing,) = [check for check in check_cluster_file(file, home) if check.status == "fail"]
    assert failing.name == "cluster.yaml schema"
    assert section in failing.seen


@pytest.mark.parametrize("spec", ["", "text", "{headGroupSpec: }", "{rayClusterConfig: {headGroupSpec: text}}"])
def test_a_manifest_without_a_head_fails(tmp_path, home, spec):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"apiVersion: ray.io/v1\nkind: RayService\nspec: {spec}\n---\napiVersion: v1\nkind: X\nspec:\n")
    (failing,) = [check for check in check_cluster_file(file, home) if check.status == "fail"]
    assert failing.name == "cluster.yaml RayService head"
    file.write_text("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {authOptions: , headGroupSpec: {serviceType: }}\n")
    assert [check.status for check in check_cluster_file(file, home)] == ["ok", "fail"]


def test_a_missing_token(tmp_path):
    token = next(check for check in check_cluster_file(LAUNCHER, tmp_path) if check.name == "Ray token")
    assert (token.status, token.remedy) == ("fail", "ray get-auth-token --generate")


def test_a_key_that_others_can_read(tmp_path, home):
    key = tmp_path / "key.pem"
    key.write_text("private")
    key.chmod(0o644)
    file = tmp_path / "cluster.yaml"
    file.write_text(edited(LAUNCHER.read_text()).replace("ssh_private_key: value", f"ssh_private_key: {key}"))
    check = next(check for check in check_cluster_file(file, home) if check.name == "SSH key")
    assert (check.status, check.remedy) == ("fail", f"chmod 600 {key}")


def test_the_manifests_fail_only_at_their_placeholders(home):
    for check in check_cluster_file(ROOT / "kuberay", home):
        assert (check.status == "fail") == bool(re.search(r":\d+$", check.name)), check


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ("authOptions: {mode: token, secretName: cpo-ray}", "authOptions: {mode: disabled}", "token"),
        ("serviceType: ClusterIP", "serviceType: LoadBalancer", "service"),
    ],
)
@pytest.mark.parametrize("name", ["cluster.yaml", "service.yaml"])
def test_an_open_manifest(tmp_path, home, name, old, new, failing):
    text = (ROOT / "kuberay" / name).read_text()
    assert old in text
    file = tmp_path / name
    file.write_text(edited(text.replace(old, new)))
    (found,) = [check for check in check_cluster_file(file, home) if check.status == "fail"]
    assert found.name.endswith(failing)


def documents(name):
    """Kind -> spec of a manifest's documents."""
    return {each["kind"]: each["spec"] for each in yaml.safe_load_all((ROOT / "kuberay" / name).read_text())}


def sources(policy):
    """Allowed sources and ports of a network policy, per rule. None: everybody."""
    return [(rule.get("from"), rule.get("ports")) for rule in policy["ingress"]]


OPERATOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}


def test_a_network_policy_keeps_strangers_from_each_kind_of_pod():
    cluster = documents("cluster.yaml")["NetworkPolicy"]
    own = {
        "podSelector": {"matchLabels": {"ray.io/cluster": "cpo-ray"}}
    }  # the label that KubeRay sets on a RayCluster's pods
    assert cluster["podSelector"] == own["podSelector"]
    assert sources(cluster) == [([own, OPERATOR], None)]
    service = documents("service.yaml")
    labels = service["NetworkPolicy"]["podSelector"]["matchLabels"]
    ray = service["RayService"]["rayClusterConfig"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"].items() >= labels.items()
    assert sources(service["NetworkPolicy"]) == [
        ([{"podSelector": {"matchLabels": labels}}, OPERATOR], None),
        (None, [{"port": 8000}]),  # every route there needs the key
    ]


def test_a_job_is_submitted_from_where_the_policy_allows():
    assert documents("job.yaml")["RayJob"]["submissionMode"] == "HTTPMode"


def test_the_commands_shown_for_clusters_ask_for_gpus():
    """The configurations also run on laptops; on a node without a GPU the image's engine would find no device."""
    shown = [documents("job.yaml")["RayJob"]["entrypoint"]]
    page = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    shown += re.findall(r"^    .*cpo-ray submit configs/.*", page, re.MULTILINE)
    assert len(shown) == 3
    assert all("--set cluster.gpus_per_worker=1" in command for command in shown), shown


def test_the_manifests_hold_no_secret_and_name_this_ray():
    pin = re.search(r"^ray\[.*\]==(.*)$", (ROOT / "requirements" / "base.in").read_text(), re.MULTILINE)[1]
    for file in (ROOT / "kuberay").glob("*.yaml"):
        text = file.read_text()
        assert set(re.findall(r"rayVersion: (\S+)", text)) <= {pin}
        for document in yaml.safe_load_all(text):
            assert document["kind"] in {
                "PersistentVolumeClaim",
                "NetworkPolicy",
                "RayCluster",
                "RayJob",
                "RayService",
            }
        for name in re.findall(r"name: (CPO_RAY_\w*(?:KEY|SHA256))\b(.*)", text):
            assert "value:" not in name[1]


def containers(spec):
    """The containers of a Ray cluster's pods: the head's, then those of each group."""
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        yield from group["template"]["spec"]["containers"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_dotted_name_in_a_cluster_file_exists(file):
    text = file.read_text()
    names = re.findall(r"\b(cpo_ray(?:\.\w+)+)\b(?!/)", text) + re.findall(r"import_path: (\S+)", text)
    for name in names:
        module, _, attribute = name.replace(":", ".").rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    assert bool(names) == (file.name == "service.yaml")


def test_the_gateway_starts_from_the_environment_of_the_service(monkeypatch, tmp_path):
    """Serve's proxy on each node calls the function that the manifest names, in the environment of its container."""
    service = documents("service.yaml")["RayService"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    (model,) = application["args"]["llm_configs"]
    folder = tmp_path / "cpo"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 50257}')
    stored = model["model_loading_config"]["model_source"]
    for variable in [name for name in os.environ if name.startswith("CPO_RAY_")]:
        monkeypatch.delenv(variable)
    pods = list(containers(service["rayClusterConfig"]))
    assert len(pods) == 2
    for container in pods:
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
        assert secrets["CPO_RAY_ENDPOINT_KEY_SHA256"] == {"name": "cpo-ray", "key": "CPO_RAY_ENDPOINT_KEY_SHA256"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value.replace(stored, str(folder)) if value else f"{'0' * 64}  -\n")
        module, _, function = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
        gateway, key = getattr(importlib.import_module(module), function)()
        settings = gateway.kwargs["settings"]
        assert settings.vocabularies == {model["model_loading_config"]["model_id"]: 50257}
        assert settings.deployments == {"cpo": "LLMServer:cpo"}
        assert settings.context == model["engine_kwargs"]["max_model_len"]
        assert key.kwargs == {"expected": "0" * 64, "control": ""}


def test_pods_of_the_service_are_ready_without_the_key():
    """KubeRay's own probe asks /-/healthz, which requires the key here, so no pod would ever be ready."""
    service = documents("service.yaml")["RayService"]
    assert service["excludeHeadPodFromServeSvc"] is True
    worker = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert "localhost:8000" in worker["readinessProbe"]["exec"]["command"][-1]
    assert "401" in worker["readinessProbe"]["exec"]["command"][-1]


def test_a_missing_cluster_file(tmp_path):
    with pytest.raises(ConfigError, match="no cluster file"):
        check_cluster_file(tmp_path / "no.yaml", tmp_path)
    with pytest.raises(ConfigError, match="has no"):
        check_cluster_file(tmp_path, tmp_path)
