"""An encoder goes into a repository: tried against a stand-in of the hub that keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi

from ssl_blocks.__main__ import main
from ssl_blocks.deploy import push
from ssl_blocks.encoders import load_encoder

pytestmark = pytest.mark.process  # takes long


@dataclass
class Hub:
    """What a stand-in was told."""

    address: str = ""
    created: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Answers what huggingface_hub asks when it makes a repository and commits small files."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: object, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer({"id": "me/digits", "siblings": [], "sha": "0" * 40, "private": True})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length")
            body = self.rfile.read(int(length)) if length else self.chunks()
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                self.answer({"url": f"{hub.address}/me/digits", "id": "me/digits"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer({"files": modes})
            elif "/commit/" in self.path:
                self.keep(body)
                self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.address}/me/digits/commit/1"})
            else:
                self.answer({"error": f"the stand-in does not know {self.path}"}, 404)

        def chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            return found

        def keep(self, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    hub.messages.append(entry["value"]["summary"])
                else:
                    assert entry["key"] == "file"
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def front_of(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_what_arrives_is_loaded_without_this_library(run: Path, hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.address, token="a-stand-in")
    done = push(run, "me/digits", api=api, license="mit", datasets=("me/data",), tags=("digits",), message="first")
    (made,) = hub.created
    assert (made["name"], made["organization"]) == ("digits", "me")
    assert made.get("visibility") == "private" or made.get("private") is True  # as versions of the client put it
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"} == set(done.files)
    assert hub.messages == ["first"]
    assert done.address == f"{hub.address}/me/digits"
    front = front_of(hub.files["README.md"].decode())
    assert front["library_name"] == "timm"
    assert front["license"] == "mit"
    assert front["datasets"] == ["me/data"]
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert "digits" in front["tags"]
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    images = torch.randn(2, 1, 8, 8)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        wanted = load_encoder(run / "encoder").features(images)
        torch.testing.assert_close(model(images), wanted)
        torch.testing.assert_close(load_encoder(tmp_path).features(images), wanted)


def test_a_dry_run_shows_the_files_and_asks_nobody(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the hub was asked"))
    assert main(["push", str(run), "me/digits", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "would upload to me/digits (private where it is new):" in shown
    for text in ("model.safetensors", 'timm.create_model("hf-hub:me/digits", pretrained=True)', "library_name: timm"):
        assert text in shown
    assert "license" not in front_of(shown.partition("\n\n")[2])  # none is claimed


def test_only_who_says_so_makes_it_public(run: Path) -> None:
    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert (repo_id, private, exist_ok) == ("me/digits", False, True)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            assert (Path(folder_path) / "model.safetensors").read_bytes() == weights

    weights = (run / "encoder" / "model.safetensors").read_bytes()
    assert push(run / "encoder", "me/digits", api=Api(), private=False).is_private is False


def test_a_hub_that_is_not_there_is_one_line(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="a-stand-in"))
    assert main(["push", str(run), "me/digits"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "digits"], "repository='digits' must be OWNER/NAME"),
        (["RUN", "me/../x"], "must be OWNER/NAME"),
        (["nowhere", "me/digits"], "source='nowhere' must be a run or an exported encoder, but config.json is not in"),
        (["RUN"], "push takes RUN OWNER/NAME, got"),
        (["RUN", "me/digits", "--licence=mit"], "--licence=mit is no known option; did you mean --license?"),
    ],
)
def test_wrong_words_are_one_line(words, message, run, capsys) -> None:
    assert main(["push", *(str(run) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
