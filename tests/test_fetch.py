"""kd.fetch on a server of our own: whole, broken, without Range, wrong, absent."""

import json
import shutil
import threading
import time
from hashlib import md5
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from kd.data import fetch as module
from kd.data.fetch import archive, archives, fetch
from kd.errors import ConfigError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
ROOT = Path(__file__).resolve().parents[1]


class Server(HTTPServer):
    """Serves `content`; breaks off after `breaks.pop(0)` bytes while there are any; honours Range or not."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.ranges, self.asked = CONTENT, [], True, []
        self.shift, self.dribbles = 0, 0  # bytes by which an answer to Range is wrong; seconds before each little block
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, begin = self.server, 0
        server.asked.append((self.path, self.headers["Range"]))
        if server.content is None:
            return self.send_error(404)
        if self.headers["Range"] and server.ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(server.content):
                return self.send_error(416)
            self.send_response(206)
            begin += server.shift
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body, block = body[: server.breaks.pop(0)] if server.breaks else body, 10 if server.dribbles == 0.05 else 50_000
        try:
            for start in range(0, len(body), block) if server.dribbles else ():
                time.sleep(server.dribbles)
                self.wfile.write(body[start : start + block])
            self.wfile.write(b"" if server.dribbles else body)
        except OSError:
            pass  # whoever asked has gone

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def other():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("KD_MIRRORS", raising=False)
    outs = [
        {"path": f"data/raw/{file}", "size": len(CONTENT), "md5": md5(CONTENT).hexdigest(), "hash": "md5"}
        | {"meta": {"name": name, "addresses": []}}
        for name, file in (("cifar10", "ten.tar.gz"), ("cifar100", "hundred.tar.gz"))
    ]
    (tmp_path / "data.dvc").write_text(json.dumps({"outs": outs}))
    return tmp_path


def check(path, project):
    assert path == project / "data/raw/hundred.tar.gz" and path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_whole(server, project, capsys):
    check(fetch("cifar100", [server.address], project), project)
    assert server.asked == [("/hundred.tar.gz", None)] and "md5 is right" in capsys.readouterr().out
    fetch("cifar100", [server.address], project)
    assert len(server.asked) == 1 and "here already" in capsys.readouterr().out


def test_a_broken_download_goes_on_where_it_stopped(server, project):
    server.breaks = [300_000, 200_000]
    check(fetch("cifar100", [server.address + "/deep/hundred.tar.gz?download=1"], project), project)
    assert server.asked == [("/deep/hundred.tar.gz?download=1", r) for r in (None, "bytes=300000-", "bytes=500000-")]


def test_a_part_of_an_earlier_run_is_used(server, project):
    part = project / "data/raw/hundred.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:400_000])
    check(fetch("cifar100", [server.address], project), project)
    assert server.asked == [("/hundred.tar.gz", "bytes=400000-")]


def test_a_wrong_part_of_an_earlier_run_costs_one_more_try(server, project):
    part = project / "data/raw/hundred.tar.gz.part"
    part.parent.mkdir(parents=True)
    for wrong in (b"x" * 400_000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)):
        part.write_bytes(wrong)
        path = fetch("cifar100", [server.address], project)
        check(path, project)
        path.unlink()


def test_a_server_without_range_starts_again(server, project):
    server.ranges, server.breaks = False, [300_000]
    check(fetch("cifar100", [server.address], project), project)
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-"]


def test_a_server_that_never_finishes_gives_up_and_keeps_the_part(server, project):
    server.ranges, server.breaks = False, [300_000] * 9
    with pytest.raises(ConfigError, match=r"300,000 of 1,000,000 bytes.*run it again"):
        fetch("cifar100", [server.address], project)
    assert len(server.asked) == 2 and [file.name for file in (project / "data/raw").iterdir()] == [
        "hundred.tar.gz.part"
    ]


def test_the_next_address_is_tried_and_goes_on_with_the_part(server, other, project):
    server.breaks = [300_000, 0]
    check(fetch("cifar100", [server.address, other.address], project), project)
    assert other.asked == [("/hundred.tar.gz", "bytes=300000-")]


@pytest.mark.parametrize("wrong", [None, CONTENT[:-1] + b"?", CONTENT[:-1], CONTENT + b"more" * 100_000, b""])
def test_wrong_content_never_takes_the_name(server, other, project, wrong):
    server.content = wrong
    with pytest.raises(ConfigError) as raised:
        fetch("cifar100", [server.address], project)
    assert server.address in str(raised.value) and "--from" in str(raised.value) and "\n" not in str(raised.value)
    assert not (project / "data/raw/hundred.tar.gz").exists()
    if wrong and len(wrong) > len(CONTENT):  # not read to its end
        assert f"another size (more than {len(CONTENT):,} bytes)" in str(raised.value)
    if wrong:
        assert "holds other content" in str(raised.value) and list((project / "data/raw").iterdir()) == []
    check(fetch("cifar100", [server.address, other.address], project), project)


def test_nobody_answers(project):
    with pytest.raises(ConfigError, match=r"127.0.0.1:1/hundred.tar.gz failed"):
        fetch("cifar100", ["http://127.0.0.1:1"], project)


def test_another_file_in_its_place_is_left_alone(server, project):
    path = project / "data/raw/hundred.tar.gz"
    path.parent.mkdir(parents=True)
    for content in (b"mine", b"x" * len(CONTENT)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="delete it"):
            fetch("cifar100", [server.address], project)
        assert path.read_bytes() == content and not server.asked


def test_too_little_disk(server, project, monkeypatch):
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(CONTENT) - 1))
    with pytest.raises(ConfigError, match="make room"):
        fetch("cifar100", [server.address], project)
    assert not server.asked and not (project / "data").exists()


def test_the_disk_fills_up_on_the_way(server, project):
    (project / "data").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="cannot write"):
        fetch("cifar100", [server.address], project)


def test_addresses_of_environment_and_data_dvc(server, project, monkeypatch):
    with pytest.raises(ConfigError, match="no address"):
        fetch("cifar100", folder=project)
    monkeypatch.setenv("KD_MIRRORS", f"{server.address}/ten.tar.gz, {server.address}/mirror/ ,")
    check(fetch("cifar100", folder=project), project)
    assert server.asked == [("/mirror/hundred.tar.gz", None)]  # not the address of the other archive
    monkeypatch.delenv("KD_MIRRORS")
    dvc = yaml.safe_load((project / "data.dvc").read_text())
    dvc["outs"][0]["meta"]["addresses"] = [f"{server.address}/official/ten.tar.gz"]
    (project / "data.dvc").write_text(yaml.safe_dump(dvc))
    assert fetch("cifar10", folder=project).read_bytes() == CONTENT
    assert server.asked[1:] == [("/official/ten.tar.gz", None)]


def test_data_dvc_of_the_project():
    known = archives()
    assert {
        name: (entry.size, entry.md5, entry.path.relative_to(ROOT).as_posix()) for name, entry in known.items()
    } == {
        "cifar10": (170498071, "c58f30108f718f92721af3b95e74349a", "data/raw/cifar-10-python.tar.gz"),
        "cifar100": (169001437, "eb9058c3a382ffc7106e4002c42a8d85", "data/raw/cifar-100-python.tar.gz"),
    }
    assert all(entry.addresses[0] == f"https://www.cs.toronto.edu/~kriz/{entry.path.name}" for entry in known.values())
    with pytest.raises(ConfigError, match="did you mean 'cifar100'"):
        archive("cifar-100")


@pytest.mark.parametrize("content", ["", "outs: 3", "outs: [{path: x}]", ": :\n-"])
def test_a_broken_data_dvc_is_named(tmp_path, content):
    (tmp_path / "data.dvc").write_text(content)
    with pytest.raises(ConfigError, match=r"data.dvc cannot be read"):
        archives(tmp_path)
    assert module.ROOT == ROOT


# --- servers that lie


def answers(project, *addresses):
    """What fetch says of servers that never give the file."""
    with pytest.raises(ConfigError) as raised:
        fetch("cifar100", list(addresses), project)
    assert "\n" not in str(raised.value) and "--from" in str(raised.value)
    return str(raised.value)


def test_a_server_that_goes_on_with_another_part_is_left(server, project):
    server.breaks, server.shift = [300_000] * 50, 1000
    assert "asked to go on from byte 300000, it answers with 'bytes 301000-" in answers(project, server.address)
    assert len(server.asked) == 2


def test_a_server_that_breaks_off_again_and_again_is_left(server, project):
    server.breaks = [1000] * 500
    assert f"broke off {module.FAILURES} times" in answers(project, server.address)
    assert len(server.asked) == module.FAILURES
    server.breaks.clear()
    check(fetch("cifar100", [server.address], project), project)  # the part is of use


def test_a_server_that_breaks_off_and_has_other_content_is_left(server, project):
    server.content, server.breaks = CONTENT[:-1] + b"?", [300_000] * 3
    assert "holds other content" in answers(project, server.address)
    assert len(server.asked) <= 5


def test_a_server_that_dribbles_is_left(server, project, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    server.dribbles = 0.05
    assert "bytes in 0.3 seconds" in answers(project, server.address)


def test_a_server_that_never_begins_is_left(project, monkeypatch):
    import socket

    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        said = answers(project, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "no answer in 0.3 seconds" in said or "timed out" in said


@pytest.mark.parametrize(
    "begin",
    [b"", b"\x00\xff\n\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nabc"]
    + [b"HTTP/1.1 206 Partial\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n"]
    + [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"HTTP/1.1 999 x\r\n\r\n"],
)
def test_answers_that_are_none_are_told_in_one_line(project, begin):
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(begin)

        threading.Thread(target=serve, daemon=True).start()
        assert "127.0.0.1" in answers(project, f"http://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
    assert not (project / "data/raw/hundred.tar.gz").exists()


def test_two_fetches_at_once_give_one_right_file(server, project):
    server.dribbles = 0.01
    done = []
    both = [threading.Thread(target=lambda: done.append(fetch("cifar100", [server.address], project))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(done) == 2 and len(server.asked) == 1
    check(done[0], project)
