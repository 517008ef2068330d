"""hf://owner/name/file, against a server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from published_networks import SIT, published
from safetensors.numpy import save_file

pytest.importorskip("huggingface_hub")

COMMIT = "0" * 40
CODE = """
import sys
import time
time.sleep = lambda seconds: None  # between attempts
from lazysi.models.storage import open_weights
for source in sys.argv[1:]:
    try:
        print("opened", len(open_weights(source)))
    except ValueError as error:
        print("refused", error)
"""


@pytest.fixture
def hub(tmp_path):
    """(address, requests) of a server with the files of the folder `hub` at /owner/name."""
    directory = tmp_path / "hub"
    directory.mkdir()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            requests.append((self.command, self.path))
            file = directory / self.path.removeprefix("/owner/name/resolve/main/").split("?")[0]
            found = self.path.startswith("/owner/name/resolve/") and file.is_file()
            content = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Error-Code", "" if found else "EntryNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                if "cut" in self.path:  # half at first, then nothing
                    content = content[: len(content) // 2] if requests.count(requests[-1]) == 1 else b""
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests, directory
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_a_hub(tmp_path, hub):
    address, requests, directory = hub
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in published(SIT).items()}
    save_file(tensors, directory / "one.safetensors")
    halves = {"a.safetensors": {}, "b.safetensors": {}}
    for index, name in enumerate(tensors):
        halves["ab"[index % 2] + ".safetensors"][name] = tensors[name]
    for file, part in halves.items():
        save_file(part, directory / file)
    places = {name: file for file, part in halves.items() for name in part}
    (directory / "all.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file(tensors | {"other": np.zeros(1)}, directory / "cut.safetensors")
    others = ("hf_", "huggingface_")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().startswith(others) and not name.lower().endswith("_proxy")
    }
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    files = ["one.safetensors", "all.safetensors.index.json", "missing.safetensors", "cut.safetensors"]

    def run():
        result = subprocess.run(
            [sys.executable, "-c", CODE, *(f"hf://owner/name/{file}" for file in files)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    lines = run()
    assert lines[:2] == [f"opened {len(tensors)}"] * 2, lines
    assert lines[2].startswith("refused expected a file at hf://owner/name/missing.safetensors: ")
    assert lines[3].startswith("refused expected a file at hf://owner/name/cut.safetensors: ")
    assert len(lines) == 4  # one paragraph
    whole = ("one.safetensors", "a.safetensors", "b.safetensors", ".json")
    asked = [path for command, path in requests if command == "HEAD" and path.endswith(whole)]
    assert len(asked) == len(set(asked)) == 4  # once for a shard, not for a tensor
    files.pop()
    assert run() == lines[:3]
    fetched = [path for command, path in requests if command == "GET" and path.endswith(whole)]
    assert len(fetched) == len(set(fetched)) == 4  # copies were kept
