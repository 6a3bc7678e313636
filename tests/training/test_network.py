import pytest

from cpo_ray.training import network
from cpo_ray.training.network import find_transport, log_path, nccl_environment, transport_warning

# Lines as NCCL 2.21 to 2.27 and aws-ofi-nccl write them, shortened.
EFA = """\
node-1:68:68 [0] NCCL INFO Bootstrap : Using ens32:10.20.16.7<0>
node-1:68:68 [0] NCCL INFO NET/OFI Selected Provider is efa (found 4 nics)
node-1:68:68 [0] NCCL INFO Using network Libfabric
"""
OLD_EFA = """\
n:1:2 [0] NCCL INFO NET/OFI Selected provider is efa, fabric is efa
n:1:2 [0] NCCL INFO Using network AWS Libfabric
"""
OVER_TCP = EFA.replace("efa (found", "tcp (found")
SOCKET = """\
node-1:68:68 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so.
node-1:68:68 [0] NCCL INFO NET/Socket : Using [0]ens32:10.20.16.7<0>
node-1:68:68 [0] NCCL INFO Assigned NET plugin Socket to comm
node-1:68:68 [0] NCCL INFO Using network Socket
"""
NEWER_SOCKET = SOCKET.rpartition("node-1")[0]
INFINIBAND = "n:1:2 [0] NCCL INFO Using network IB\n"


@pytest.mark.parametrize(
    ("log", "transport", "slow"),
    [
        (EFA, "efa", False),
        (OLD_EFA, "efa", False),
        (OVER_TCP, "Libfabric over tcp", True),
        (SOCKET, "Socket", True),
        (NEWER_SOCKET, "Socket", True),
        (INFINIBAND, "IB", False),
        ("", None, False),
    ],
)
def test_the_transport_is_read_from_nccl_s_log(log, transport, slow):
    assert find_transport(log) == transport
    assert (transport_warning(transport, 2) is not None) == slow
    assert transport_warning(transport, 1) is None  # within a machine it uses NVLink


def test_the_warning_names_what_to_check():
    warning = transport_warning("Socket", 2)
    for words in ("Socket", "efa", "aws-ofi-nccl", "fi_info"):
        assert words in warning


def test_settings_of_the_user_are_kept():
    ours = nccl_environment({})
    assert ours["FI_EFA_USE_DEVICE_RDMA"] == "1"
    assert "NCCL_DEBUG" not in nccl_environment({"NCCL_DEBUG": "WARN"})
    assert nccl_environment(ours) == {}


def test_a_worker_reads_its_own_log(tmp_path, monkeypatch):
    pattern = str(tmp_path / "nccl-%h-%p.log")
    monkeypatch.setenv("NCCL_DEBUG_FILE", pattern)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(network.socket, "gethostname", lambda: "node-1.internal")
    notices = []
    network.warn_about_slow_network(notices.append)
    assert notices == []  # there is no log
    (tmp_path / log_path("nccl-%h-%p.log", "node-1", network.os.getpid())).write_text(SOCKET)
    network.warn_about_slow_network(notices.append)
    assert len(notices) == 1
    assert "2 machines" in notices[0]
