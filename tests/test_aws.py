"""cluster.yaml and aws/stack.yaml with a mocked AWS (moto): what `ray up` would do, without a cloud."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: make install")
moto = pytest.importorskip("moto", reason="moto is not installed: make install")

# What moto's CloudFormation does not support (placement groups, a rule for EFA) is checked in the template.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS")

ROOT = Path(__file__).parent.parent
REGION, ZONE = "us-east-1", "us-east-1b"
IMAGE = "ami-12c6146b"  # one of moto's


@pytest.fixture(scope="module")
def account():
    """A mocked AWS account with the stack: the stack's outputs."""
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", REGION)
    with moto.mock_aws():
        formation = boto3.client("cloudformation", REGION)
        formation.create_stack(
            StackName="cpo-ray",
            TemplateBody=(ROOT / "aws" / "stack.yaml").read_text(),
            Parameters=[
                {"ParameterKey": "MyAddress", "ParameterValue": "203.0.113.7/32"},
                {"ParameterKey": "Zone", "ParameterValue": ZONE},
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (stack,) = formation.describe_stacks(StackName="cpo-ray")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        boto3.client("ec2", REGION).create_key_pair(KeyName="mine")
        yield {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    patch.undo()


@pytest.fixture(scope="module")
def launcher(account, tmp_path_factory):
    """cluster.yaml as a user has edited it: each EDIT comment names the output to insert."""
    key = tmp_path_factory.mktemp("keys") / "mine.pem"
    key.write_text("private")
    values = {
        "the region of the stack": REGION,
        "path of the private half": str(key),
        "Deep Learning": IMAGE,
        "name of the key pair": "mine",
    }
    lines = []
    for line in (ROOT / "cluster.yaml").read_text().splitlines():
        content, mark, words = line.partition("# EDIT: ")
        outputs = [name for name in re.findall(r"[A-Z][A-Za-z]+", words) if name in account]
        puts = [account[name] for name in outputs] or [value for start, value in values.items() if start in words]
        for put in puts if mark else []:
            content = content.replace("CHANGE-ME", put, 1)
        lines.append(content + mark + words)
    text = "\n".join(lines)
    assert "CHANGE-ME" not in text
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def bootstrapped(launcher):
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher)
    validate_config(prepared)
    return bootstrap_aws(prepared)


def test_ray_creates_no_roles_or_security_groups(account, bootstrapped):
    roles = {role["RoleName"] for role in boto3.client("iam", REGION).list_roles()["Roles"]}
    assert roles == {"cpo-ray-head", "cpo-ray-worker"}  # Ray's default role has full access to EC2 and S3
    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    assert {group["GroupId"] for group in groups if group["GroupName"] != "default"} == {account["SecurityGroup"]}


def test_only_ssh_from_one_address_is_allowed_in(account):
    (group,) = boto3.client("ec2", REGION).describe_security_groups(GroupIds=[account["SecurityGroup"]])[
        "SecurityGroups"
    ]
    outside = [rule for rule in group["IpPermissions"] if rule.get("IpRanges") or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpRanges"][0]["CidrIp"]) for rule in outside] == [
        (22, 22, "203.0.113.7/32")
    ]
    among = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert among == [account["SecurityGroup"]]


def resources():
    """The stack's resources, from the template: moto omits what it does not support."""

    class Template(yaml.SafeLoader):
        pass

    Template.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))
    return yaml.load((ROOT / "aws" / "stack.yaml").read_text(), Template)["Resources"]


def test_bucket_and_file_system_are_private_encrypted_and_retained():
    found = resources()
    assert set(found["Bucket"]["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert found["Bucket"]["Properties"]["BucketEncryption"]
    assert found["FileSystem"]["Properties"]["Encrypted"]
    assert {found[name]["DeletionPolicy"] for name in ("Bucket", "FileSystem")} == {"Retain"}


def test_ray_starts_and_terminates_both_node_types(account, bootstrapped):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
    types = bootstrapped["available_node_types"]
    for kind, name in (("head", "head"), ("worker", "a100"), ("worker", "a100")):
        tags = {"ray-node-kind": kind, "ray-node-status": "uninitialized", "ray-node-name": name}
        provider.create_node(types[name]["node_config"], tags, 1)
    machines = [
        machine
        for reservation in boto3.client("ec2", REGION).describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    ]
    workers = [machine for machine in machines if machine["InstanceType"] == "p4d.24xlarge"]
    assert len(machines) == 3
    assert len(workers) == 2
    for machine in machines:
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["ray-cluster-name"] == "cpo-ray"  # required by the head's role
        assert machine["Placement"]["AvailabilityZone"] == ZONE
    for worker in workers:
        assert worker["SubnetId"] == account["PrivateSubnet"]
        assert worker["IamInstanceProfile"]["Arn"].endswith("/cpo-ray-worker")
    provider.terminate_nodes([machine["InstanceId"] for machine in machines])
    assert provider.non_terminated_nodes({}) == []


def test_workers_have_four_network_cards_and_one_placement_group(bootstrapped):
    worker = bootstrapped["available_node_types"]["a100"]["node_config"]
    assert [(card["NetworkCardIndex"], card["InterfaceType"]) for card in worker["NetworkInterfaces"]] == [
        (card, "efa") for card in range(4)
    ]
    group = resources()["PlacementGroup"]["Properties"]
    assert group == {"GroupName": worker["Placement"]["GroupName"], "Strategy": "cluster"}


def statements(role, account):
    """Every statement of a role's inline and managed policies."""
    iam = boto3.client("iam", REGION)
    found = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        found += (yaml.safe_load(document) if isinstance(document, str) else document)["Statement"]
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)
        found += document["PolicyVersion"]["Document"]["Statement"]
    return found


def test_workers_may_only_use_one_bucket(account):
    bucket = f"arn:aws:s3:::{account['Bucket']}"
    for statement in statements("cpo-ray-worker", account):
        assert statement["Resource"] in {bucket, f"{bucket}/*"}
        assert all(action.startswith("s3:") and "*" not in action for action in statement["Action"])


def test_the_head_may_only_change_its_own_cluster(account):
    for statement in statements("cpo-ray-head", account):
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions)
        if {"ec2:TerminateInstances", "ec2:CreateTags"} & set(actions):
            assert statement["Condition"]
        if actions == ["iam:PassRole"]:
            assert statement["Resource"].endswith(":role/cpo-ray-worker")


def test_the_node_script_parses():
    subprocess.run(["bash", "-n", str(ROOT / "aws" / "node.sh")], check=True)


@pytest.fixture
def machine(tmp_path):
    """A machine on which node.sh runs with fake commands; what was run with sudo is in `done`."""
    home = tmp_path / "cpo_ray"
    commands = tmp_path / "bin"
    done = tmp_path / "done"
    for folder in (home, commands):
        folder.mkdir()
    (home / "environment").write_text("")
    done.write_text("")

    def put(name, script):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (commands / name).chmod(0o755)

    def node(*words):
        environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{commands}:{os.environ['PATH']}", "USER": "ubuntu"}
        subprocess.run(["bash", str(ROOT / "aws" / "node.sh"), *words], env=environment, check=True)
        return done.read_text()

    put("sudo", f'echo "$@" >>{done}; [ "$1" != tee ] || cat >>{done}')
    node.put, node.home = put, home
    return node


RUNNING = """echo "[JobDetails(status=<JobStatus.RUNNING: 'RUNNING'>),"; yes "JobDetails(status=SUCCEEDED)," | head -c 500000"""


@pytest.mark.parametrize(
    ("ray", "ends"), [(RUNNING, False), ("echo 'JobDetails(status=SUCCEEDED)'", True), ("exit 1", True)]
)
def test_a_head_shuts_down_only_without_a_job(machine, ray, ends):
    """The list may be long: if its reader stops at the running job, the writer fails with SIGPIPE."""
    machine.put("ray", ray)
    (machine.home / "last-needed").write_text("0")
    assert ("shutdown -h now" in machine("check-idle", "120")) == ends


@pytest.mark.parametrize(("pgrep", "ends"), [('[ "$*" = "-x raylet" ]', False), ("exit 1", True)])
def test_a_worker_shuts_down_only_without_a_head(machine, pgrep, ends):
    """The raylet on a worker exits by itself if the head is lost."""
    machine.put("pgrep", pgrep)
    (machine.home / "last-needed").write_text("0")
    assert ("shutdown -h now" in machine("check-head", "30")) == ends


@pytest.mark.parametrize(("poll", "drained"), [(1, True), (4, True), (12, False)])
def test_a_spot_notice_drains_the_node(machine, tmp_path, poll, drained):
    """The notice appears at poll number `poll`, of eleven polls per minute."""
    machine.put("ray", f'[ "$RAY_ADDRESS" = auto ] && echo ray "$@" >>{tmp_path / "done"}')
    machine.put("sleep", "")
    machine.put(
        "curl",
        f"""case "$*" in
        *api/token*) echo a-token ;;
        *spot/instance-action*a-token) echo >>{tmp_path}/polls; [ $(wc -l <{tmp_path}/polls) -ge {poll} ] ;;
        *) exit 22 ;;
        esac""",
    )
    done = machine("check-spot")
    assert ("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in done) == drained
    assert len((tmp_path / "polls").read_text().splitlines()) == min(poll, 11)


def test_each_timer_has_its_own_file(machine):
    machine("stop-without-head", "30")
    done = machine("watch-for-spot-notice")
    assert "tee /etc/cron.d/cpo-ray-check-head\n*/5 * * * * ubuntu bash" in done
    assert f"tee /etc/cron.d/cpo-ray-check-spot\n* * * * * ubuntu bash {machine.home}/aws/node.sh check-spot\n" in done


@pytest.mark.parametrize(("stop", "check"), [("stop-when-idle", "check-idle"), ("stop-without-head", "check-head")])
def test_the_idle_time_starts_with_the_timer(machine, stop, check):
    for command in ("ray", "pgrep"):
        machine.put(command, "exit 1")
    assert f"{machine.home}/aws/node.sh {check} 30\n" in machine(stop, "30")
    assert "shutdown" not in machine(check, "30")


def test_a_machine_that_shuts_down_is_terminated(bootstrapped, launcher):
    """Workers also install their timer before any command that may fail or hang."""
    types = bootstrapped["available_node_types"]
    assert {types[name]["node_config"]["InstanceInitiatedShutdownBehavior"] for name in types} == {"terminate"}
    assert "stop-when-idle" in launcher["head_start_ray_commands"][-1]
    end, spot = types["a100"]["initialization_commands"]
    assert "stop-without-head" in end
    assert "watch-for-spot-notice" in spot
