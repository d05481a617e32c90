"""An exported folder goes to the Hub: here to a server of its own, which knows one repository."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from omegaconf import OmegaConf

from sparsemend.run.push import open_repository, push
from sparsemend.run.run import pushing

REPOSITORY = "someone/mended"


@dataclass
class Hub:
    """What the server was asked to hold.  writers: tokens that may write."""

    writers: tuple[str, ...] = ("writes",)
    visibility: list[Any] = field(default_factory=list)  # of every request to make a repository
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    broken: bool = False
    private: bool = True


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content: Any = {"id": REPOSITORY, "private": hub.private}
            if self.path.startswith(f"/api/models/{REPOSITORY}/tree/main"):
                facts = {"type": "file", "oid": "0"}
                content = [{**facts, "path": p, "size": len(f)} for p, f in hub.files.items()]
            self.answer(200 if self.may_write() else 403, content)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.may_write():
                self.answer(403, {"error": "this token may not write"})
            elif self.path == "/api/repos/create":
                hub.visibility.append(json.loads(body).get("visibility"))
                again = len(hub.visibility) > 1
                self.answer(409 if again else 200, {"url": self.address()})
            elif self.path == f"/api/models/{REPOSITORY}/preupload/main":
                asked = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer(200, {"files": [{"path": path, **modes} for path in asked]})
            elif hub.broken or self.path != f"/api/models/{REPOSITORY}/commit/main":
                self.answer(400, {"error": f"no {self.path} today"})
            else:
                hub.commits += 1
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "deletedFile":
                        del hub.files[line["value"]["path"]]
                    elif line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.files[line["value"]["path"]] = content
                made = {"commitUrl": f"{self.address()}/commit/1", "commitOid": "1"}
                self.answer(200, made)

        def address(self) -> str:
            return f"http://{self.headers['Host']}/{REPOSITORY}"

        def may_write(self) -> bool:
            return self.headers.get("Authorization", "").removeprefix("Bearer ") in hub.writers

        def answer(self, status: int, content: Any) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *arguments: Any) -> None:
            return

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "writes")
    yield hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("private", "visibility"), [(None, None), (True, "private"), (False, "public")]
)
def test_a_folder_goes_up_whole_in_one_commit(
    hub: Hub, tmp_path: Path, private: bool | None, visibility: str | None
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    open_repository(REPOSITORY, private=private)
    open_repository(REPOSITORY, private=private)  # it is there, which is no error
    assert push(tmp_path, REPOSITORY).endswith(f"/{REPOSITORY}/commit/1")
    assert hub.visibility == [visibility, visibility]
    assert hub.files == {"config.json": b"{}", "model.safetensors": bytes(range(256))}
    assert hub.commits == 1


def test_weights_of_an_earlier_upload_go_and_other_files_stay(hub: Hub, tmp_path: Path) -> None:
    kept = ["LICENSE", "images/model.png", "onnx/model.safetensors"]
    weights = ["model.safetensors", "masks.safetensors", "model.safetensors.index.json"]
    weights += ["model-00001-of-00002.safetensors", "pytorch_model.bin", "config.json"]
    hub.files = dict.fromkeys([*kept, *weights], b"earlier")
    (tmp_path / "config.json").write_text("now")
    (tmp_path / "packed-00001-of-00001.safetensors").write_bytes(b"now")
    push(tmp_path, REPOSITORY)
    now = {"config.json": b"now", "packed-00001-of-00001.safetensors": b"now"}
    assert hub.files == {**dict.fromkeys(kept, b"earlier"), **now}
    assert hub.commits == 1
    (tmp_path / "packed-00001-of-00001.safetensors").rename(tmp_path / "model.safetensors")
    push(tmp_path, REPOSITORY)
    assert hub.files.keys() == {*kept, "config.json", "model.safetensors"}


def test_a_token_that_may_not_write_is_refused_before_any_work(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "reads")
    with pytest.raises(ValueError, match=r"export_push=someone/mended: .*HF_TOKEN may write to it"):
        open_repository(REPOSITORY, private=None)


def test_a_public_repository_is_refused_where_it_is_to_be_private(hub: Hub) -> None:
    hub.private = False
    open_repository(REPOSITORY, private=None)
    with pytest.raises(ValueError, match=f"export_push={REPOSITORY} is there and public; make it"):
        open_repository(REPOSITORY, private=True)


def test_an_upload_that_fails_says_where_the_model_lies(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub.broken = True
    with pytest.raises(ValueError, match=rf"hf upload {REPOSITORY} {tmp_path}"):
        push(tmp_path, REPOSITORY)


def test_a_run_uploads_what_it_exports_and_is_stopped_before_where_it_may_not(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = OmegaConf.create({"export_push": REPOSITORY, "export_private": None})
    job: Any = SimpleNamespace(cfg=cfg, out=tmp_path)
    with pushing(job):
        assert hub.visibility == [None]
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
    assert hub.files == {"config.json": b"{}"}
    monkeypatch.setenv("HF_TOKEN", "reads")
    with pytest.raises(ValueError, match="may write to it"), pushing(job):
        pytest.fail("worked first")
    cfg.export_push = None
    with pushing(job):
        pass
    assert hub.commits == 1
