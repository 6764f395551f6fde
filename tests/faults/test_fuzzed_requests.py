"""A program with the right keys sends what no client of ours would: every message is answered or dropped."""

from __future__ import annotations

import collections
import contextlib
import math
import random
import struct
import time

import msgspec
import pytest
import zmq
from curve_peers import FAR, Peer, call, status
from exact import check, rows_by_sqlite, writers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_core import Job
from balsam_core.errors import error_class
from balsam_core.model import calls
from balsam_core.model.app import App
from balsam_core.model.calls import (
    AddApp,
    AddEdge,
    AddJobs,
    CheckRemoval,
    ClaimJobs,
    CountHeldByOthers,
    CountJobs,
    GetApps,
    GetAttempts,
    GetBlockers,
    GetDelay,
    GetEdges,
    GetHistory,
    GetInfo,
    GetJobs,
    GetKilledJobs,
    GetRootFailures,
    GetRows,
    GetUnfit,
    HasClaimable,
    KillJobs,
    OpenStagedInsert,
    Order,
    PromoteDelayed,
    RegisterLauncher,
    RemoveApp,
    RenewLease,
    Resources,
    RetryJobs,
    Update,
    UpdateJobs,
)
from balsam_core.model.codec import encode_call
from balsam_core.model.filters import AllOf, AnyOf, Compare, NoneOf
from balsam_core.model.states import State
from balsam_core.proxy import protocol
from balsam_core.proxy.protocol import PROTOCOL, CallRequest, Hello, StatusRequest, catalogue, decode_request
from balsam_core.proxy.server.server import OPERATIONS
from balsam_core.schema import SCHEMA

CLIENT = "0123456789abcdef" * 2
SOME = AllOf([Compare("name", "startswith", "fuzz"), NoneOf([AnyOf([Compare("id", "in", [1, 2, 3])])])])
READS = [
    GetInfo(),
    GetApps(names=["a"]),
    GetJobs(where=SOME, limit=3),
    GetRows(fields=["id", "name", "data"], where=SOME, order=Order("name", descending=True), limit=3, after=1),
    CountJobs(where=SOME, limit=3),
    GetAttempts(jobs=[1, 2]),
    GetBlockers(job=1, limit=3),
    GetDelay(workflow="w", only=[1]),
    GetRootFailures(where=SOME),
    GetHistory(jobs=[1, 2]),
    GetEdges(jobs=[1], children_of=True),
    GetKilledJobs(launcher=1),
    GetUnfit(resources=Resources(minutes_left=1.5)),
    HasClaimable(launcher=1, resources=Resources(minutes_left=1.5), only=[1]),
    CountHeldByOthers(launcher=1),
    CheckRemoval(where=SOME),
]
WRITES = [
    PromoteDelayed(limit=1),
    AddApp(app=App(name="a", executable="true"), replace=True),
    RemoveApp(name="nobody"),
    AddJobs(jobs=[Job(name="fuzz", command="true", data={"a": [1, 2.5, None]}, environ={"A": "b"})]),
    AddEdge(parent=1, child=2),
    OpenStagedInsert(),
    KillJobs(where=SOME, limit=1),
    RetryJobs(where=SOME, limit=1),
    RegisterLauncher(host="h", pid=1, boot_id="b", process_start=1.0, lease_seconds=10.0),
    RenewLease(launcher=1, lease_seconds=10.0),
    ClaimJobs(launcher=1, limit=1, resources=Resources()),
    UpdateJobs(launcher=1, updates=[Update(job=1, attempt=1, transitions=[(State.RUNNING, 0.5)], message="m")]),
]
CORPUS = [
    protocol.encode(request)
    for request in (
        Hello(1, PROTOCOL, SCHEMA, catalogue(), "fuzz"),
        StatusRequest(2),
        *(call(3, what) for what in READS),
        *(call(4, what, client=CLIENT, seq=number + 1) for number, what in enumerate(WRITES)),
    )
]
PIECES = [
    b"\xc0", b"\xc3", b"\x00", b"\xff",
    b"\xcf" + b"\xff" * 8,  # the largest number
    b"\xd3\x80" + bytes(7),  # the smallest
    b"\xcb" + struct.pack(">d", math.nan),
    b"\xcb" + struct.pack(">d", math.inf),
    b"\xcb" + struct.pack(">d", -math.inf),
    b"\x91" * 200, b"\x81\x01" * 200,  # nested arrays, nested maps
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",  # four thousand million members
    b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",  # as long a text, as many bytes
    b"\xc9\xff\xff\xff\xff\x01", b"\xc7\x0c\xff" + b"\xff" * 12,  # an extension, a time
    b"\xa3a\x00b", b"\xa2\xff\xfe", b"\xa3\xed\xa0\x80",  # NUL, no UTF-8, a surrogate
    b"\xa4" + "💥".encode(),
    b"\xa1'", b"\xaa../../../a", b"\xa4$(a)",
]  # fmt: skip


def mutate(chance: random.Random) -> bytes:
    """Return a valid request with some damage."""
    data = bytearray(chance.choice(CORPUS))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data)) if data else 0
        match chance.randrange(8):
            case 0 if data:
                data[at] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[at] = chance.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + chance.randrange(1, 9)]
            case 4:
                data[at:at] = chance.choice(PIECES)
            case 5:
                data[at : at + 1] = chance.choice(PIECES)
            case 6:
                other = chance.choice(CORPUS)
                data[at:] = other[chance.randrange(len(other)) :]
            case _:
                data[at:at] = chance.randbytes(chance.randrange(1, 20))
    return bytes(data)


def bomb(depth: int) -> bytes:
    """Return the condition NOT NOT NOT ... as bytes, deeper than Python could write it."""
    inner = msgspec.msgpack.encode(Compare("id", "eq", 1))
    return b"\x82\xa6fields\x91\xa2id\xa5where" + b"\x82\xa4type\xa4none\xa5parts\x91" * depth + inner


def run(number, operation, body, **members):
    return CallRequest(number, operation, msgspec.Raw(body), members.pop("deadline", FAR), **members)


def write(what, seq, *, client="f" * 32, acked=0, deadline=FAR):
    return CallRequest(seq, what.operation(), msgspec.Raw(encode_call(what)), deadline, client, seq, acked)


def tracebacks(served):
    return [
        line for file in served.dir.log.iterdir() for line in file.read_text(errors="replace").splitlines()
        if "Traceback" in line or " failed" in line
    ]  # fmt: skip


def where(served):
    return served.address.host, served.address.port


def test_decoding_takes_no_exception_and_no_time(amount, verdict):
    """Requests are mutated at random: each is decoded or refused, within a millisecond (T21)."""
    chance = random.Random(21)
    times, refused, requests = [], 0, 0
    clock = time.perf_counter
    for _ in range(amount(20_000, 1_000_000)):
        data = mutate(chance)
        began = clock()
        try:
            decode_request(data)
            requests += 1
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            refused += 1
        times.append(clock() - began)
    times.sort()
    p99 = times[int(len(times) * 0.99)]
    assert p99 < 1e-3
    assert requests > 100
    assert refused > 100
    verdict("T21", "decode fuzz", f"{len(times)} inputs: 0 uncaught, {refused} refused, p99 {p99 * 1e6:.0f} us")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(max_size=9)
        | st.binary(max_size=9),
        lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_any_well_formed_message_is_a_request_or_refused(value):  # fmt: skip
    """Any well-formed message is decoded: it is a request or refused (T21)."""
    for tagged in (value, ["run", value], ["hello", 1, value], ["run", 1, "get_info", value, value, "", 0, 0]):
        with contextlib.suppress(msgspec.DecodeError):
            assert isinstance(decode_request(msgspec.msgpack.encode(tagged)), (Hello, CallRequest, StatusRequest))


def test_fuzzed_requests_are_answered_or_dropped(served, tmp_path, amount, verdict):
    """A client sends mutated requests: each is answered or dropped, server and other clients go on (T21)."""
    before, number = served.address, amount(6_000, 1_000_000)
    chance = random.Random(22)
    codes = collections.Counter()
    with writers(served.path, 1, tmp_path) as clients, Peer(served.dir, where(served)) as peer:
        clients.begin()

        def take(*, wait=0):
            while peer.socket.poll(wait):
                codes[protocol.decode_reply(peer.socket.recv(zmq.NOBLOCK)).code] += 1

        for sent in range(number):
            peer.send(mutate(chance))
            if sent % 50 == 0:
                take()
            if sent % 1000 == 999:  # what was sent before has been looked at when this is answered
                while (reply := peer.receive(10)) is None or reply.number != 2**53:
                    if reply is None:
                        assert served.server == before.pid
                        peer.send(StatusRequest(2**53))
                    else:
                        codes[reply.code] += 1
                    if not peer.socket.poll(20):
                        peer.send(StatusRequest(2**53))
                while peer.socket.poll(50):
                    peer.socket.recv()
        clients.stop()
        clients.finish()
    assert served.address == before, "the server lives"
    calls_answered = status(served.dir, where(served)).calls
    served.stop()
    check(clients.journals, rows_by_sqlite(served.path)).assert_exact()
    assert not tracebacks(served)
    assert codes.keys() <= {"", "invalid-input", "not-found", "conflict", "unavailable", "schema-mismatch",
                            "outcome-unknown", "busy", "too-large", "expired"}  # fmt: skip
    log = "".join(file.read_text() for file in served.dir.log.glob("server_*"))
    dropped = int(log.split(" messages dropped")[-2].split()[-1])
    assert dropped > number / 10
    verdict(
        "T21", "fuzzed requests by a peer with keys",
        f"{number} sent, {dropped} dropped, {calls_answered} answered, {dict(codes)}; same server, no exception",
    )  # fmt: skip


HOSTILE = [
    run(1, "get_rows", bomb(300)),
    run(1, "get_rows", encode_call(GetRows(fields=["name"], after=2**63))),
    run(1, "get_rows", encode_call(GetRows(fields=["name"] * 5000))),
    run(1, "get_rows", encode_call(GetRows(fields=["na\0me"]))),
    run(1, "get_rows", encode_call(GetRows(fields=["id"], where=Compare("id", "eq", 2**64 - 1)))),
    run(1, "get_rows", encode_call(GetRows(fields=["id"], where=Compare("id", "eq", math.nan)))),
    run(1, "get_rows", encode_call(GetRows(fields=["id"], where=AllOf([Compare("id", "eq", 1)] * 5000)))),
    run(1, "get_history", encode_call(GetHistory(jobs=[2**63]))),
    run(1, "get_unfit", encode_call(GetUnfit(resources=Resources(nodes=2**63, minutes_left=math.inf)))),
    run(1, "count_jobs", encode_call(CountJobs()), deadline=math.inf),
    run(1, "no_such_operation", b"\xc0"),
    run(1, "call", b"\xc0"),
    run(1, "open_staged_insert", encode_call(OpenStagedInsert())),  # a write without a request id
    run(1, "open_staged_insert", encode_call(OpenStagedInsert()), client=CLIENT),
    write(OpenStagedInsert(), 2**53, client="e" * 32),
    write(OpenStagedInsert(), 1, deadline=math.nan),
    write(OpenStagedInsert(), 2, deadline=-math.inf),
    write(AddEdge(parent=2**63, child=-(2**63)), 3),
    write(KillJobs(where=Compare("id", "eq", 2**64 - 1)), 4),
    write(AddJobs(jobs=[Job(name="a\0b", command="true")]), 5),
    write(RegisterLauncher(host="h\0", pid=2**63, boot_id="", process_start=math.nan, lease_seconds=math.inf), 6),
    write(RenewLease(launcher=1, lease_seconds=math.nan), 7),
    write(UpdateJobs(launcher=1, updates=[Update(job=2**63, attempt=-1, transitions=[(State.RUNNING, math.nan)])]), 8),
    Hello(1, 2**63 - 1, "x", "y", "\x1b[31m\n"),
]


@pytest.fixture(scope="module")
def module_served(tmp_path_factory):
    from served_db import ServedDB

    db = ServedDB(tmp_path_factory.mktemp("fuzzed") / "db")
    db.start()
    yield db
    db.close()


def test_hostile_values_are_refused_by_name(module_served):
    """A client with the key sends hostile values: each is refused by a named error, the server goes on (T21)."""
    served = module_served
    before = served.address
    with Peer(served.dir, where(served)) as peer:
        peer.reply(0)
        for request in HOSTILE:
            reply = peer.ask(request, 10)
            if reply.code:
                assert error_class(reply.code).code == reply.code
                message = msgspec.msgpack.decode(reply.body, type=str)
                assert message.isprintable(), (request, message)
                assert "see its log" not in message, (request, message)
        peer.send(Hello(3, 1, "x\n", "forged line of the log", ""))
        peer.send(write(OpenStagedInsert(), 3, client="\n"))
        peer.send(StatusRequest(4))
        assert peer.receive(10).number == 4, "they are dropped"
        for depth in (2_000, 100_000):  # too deep to be read at all
            peer.send(run(3, "get_rows", bomb(depth)))
            peer.send(run(3, "get_info", b"\x91" * depth))
            peer.send(StatusRequest(4))
            assert peer.receive(10).number == 4, "they are dropped"
    assert served.address == before
    assert not tracebacks(served)


def test_a_request_id_of_another_call_is_refused(module_served):
    """A client sends the request id of another call, or acknowledges too much: it is refused (T21)."""
    served = module_served
    before = served.address
    with Peer(served.dir, where(served)) as peer:
        register = RegisterLauncher(host="h", pid=1, boot_id="b", process_start=1.0, lease_seconds=60.0)
        launcher = msgspec.msgpack.decode(peer.ask(write(register, 1, client="a" * 32)).body)
        claim = ClaimJobs(launcher=launcher, limit=1, resources=Resources())
        assert peer.ask(write(claim, 2, client="a" * 32)).code == ""
        assert peer.ask(write(OpenStagedInsert(), 2, client="a" * 32)).code == "invalid-input"
        # It says that all is answered, even what is not yet sent.
        assert peer.ask(write(OpenStagedInsert(), 32, client="a" * 32, acked=2**53)).code == ""
        assert peer.ask(write(OpenStagedInsert(), 32, client="a" * 32)).code == "", "its own answer is still stored"
        again = peer.ask(write(register, 1, client="a" * 32, deadline=-1))
        assert again.code in {"", "outcome-unknown"}
        assert again.code or msgspec.msgpack.decode(again.body) == launcher
    assert served.address == before


def test_every_operation_was_tried():
    known = {type(what).operation() for what in (*READS, *WRITES)}
    rest = OPERATIONS.keys() - known
    assert rest == {"prune", "publish_staged_insert", "abandon_staged_insert", "promote_staged_insert", "remove_jobs",
                    "count_states", "last_job", "get_launchers", "close_launcher"}  # fmt: skip
    assert calls
