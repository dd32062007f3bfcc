"""`xlmprune push`, against a hub on this machine that speaks the API; see `hub_server.py`."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
from hub_server import READER, WRITER
from huggingface_hub import constants
from sample_report import sample_report
from tiny import tiny_bundle
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.export import manifest
from xlmprune.report.pages import write as write_report

# Of a call that huggingface_hub itself makes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle with report and model card."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("push") / "bundle", forms=("fp32",))
    write_report(sample_report(3), bundle)
    manifest.write(bundle, {"xlmprune": "0"}, "0" * 64)
    return bundle


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "bundle")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.running() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield found


def push(bundle, *options):
    return CliRunner().invoke(app, ["push", str(bundle), *map(str, options)])


def files_of(hub, name, revision="main"):
    repository = hub.repositories[f"models/{name}"]
    return repository.commits[repository.branches[revision]]


def test_a_pushed_bundle_is_the_bundle_and_is_so_when_it_is_downloaded(hub, bundle, tmp_path):
    result = push(bundle, "me/model")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{hub.endpoint}/me/model/commit/")
    listed = [*manifest.read(bundle)["files"], manifest.FILE]
    uploaded = files_of(hub, "me/model")
    assert {name: uploaded[name] for name in listed} == {
        name: (bundle / name).read_bytes() for name in listed
    }
    assert not hub.repositories["models/me/model"].private
    copy = huggingface_hub.HfApi(endpoint=hub.endpoint).snapshot_download(
        "me/model", local_dir=tmp_path / "copy", cache_dir=tmp_path / "cache"
    )
    assert Path(copy) == tmp_path / "copy"
    assert all(check.passed for check in manifest.check(tmp_path / "copy"))


def test_a_second_push_removes_what_the_first_one_uploaded_and_leaves_what_others_did(hub, bundle):
    assert push(bundle, "me/model").exit_code == 0
    repository = hub.repositories["models/me/model"]
    repository.commit("main", files_of(hub, "me/model") | {"LICENSE": b"MIT"})
    (bundle / "model.onnx").unlink()
    manifest.write(bundle, {"xlmprune": "0"}, "0" * 64)
    again = push(bundle, "me/model")
    assert again.exit_code == 0, again.output
    assert "model.onnx" not in files_of(hub, "me/model")
    assert files_of(hub, "me/model")["LICENSE"] == b"MIT"


def test_a_branch_and_a_private_repository(hub, bundle):
    result = push(bundle, "me/model", "--private", "--revision", "int8")
    assert result.exit_code == 0, result.output
    assert hub.repositories["models/me/model"].private
    assert "model.onnx" in files_of(hub, "me/model", "int8")
    assert "model.onnx" not in files_of(hub, "me/model", "main")


def test_a_private_push_into_a_public_repository_is_refused(hub, bundle):
    hub.add("me/model", {"LICENSE": b"MIT"})
    result = push(bundle, "me/model", "--private")
    assert result.exit_code == 2
    assert "me/model exists and is public" in result.stderr
    assert files_of(hub, "me/model") == {"LICENSE": b"MIT"}


def test_a_changed_bundle_is_not_uploaded(hub, bundle):
    file = bundle / "tokenizer.json"
    file.write_text(file.read_text().replace("unk", "nuk"))
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "has another SHA-256" in result.stderr
    assert "Nothing was uploaded" in result.stderr
    assert hub.asked == []


@pytest.mark.parametrize("card", ["# no metadata\n", "---\n- a list\n---\n", "---\nlicense: [\n---\n"])
def test_a_card_that_is_not_valid_is_not_uploaded(hub, bundle, card):
    (bundle / "README.md").write_text(card)
    manifest.write(bundle, {"xlmprune": "0"}, "0" * 64)
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "README.md: " in result.stderr
    assert hub.asked == []


def test_a_card_that_the_hub_refuses_is_a_sentence(hub, bundle):
    card = bundle / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: 3"))
    manifest.write(bundle, {"xlmprune": "0"}, "0" * 64)
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert '"license" must be a string' in result.stderr
    assert "model.onnx" not in files_of(hub, "me/model")


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (None, "me/model", "no token of the hub was found. Log in with `hf auth login`, or set HF_TOKEN"),
        (
            "hf_wrong",
            "me/model",
            "me/model could not be uploaded to: the hub does not accept the token",
        ),
        (READER, "me/model", "the token may not do this; an upload needs a token with write permission"),
        (WRITER, "a/b/c", "is not a repository name; expected owner/name"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(hub, bundle, monkeypatch, token, name, said):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    result = push(bundle, name)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("revision", ["", "..", "a..b", "a b", "-a", "/a", "a/", "v1?", "a\nb", "a\n"])
def test_a_branch_that_cannot_be_is_refused_before_anything_is_created(hub, bundle, revision):
    result = push(bundle, "me/model", f"--revision={revision}")
    assert result.exit_code == 2, result.output
    assert "is not a branch name" in result.stderr
    assert not hub.asked


def test_a_folder_that_is_no_bundle_is_refused_with_advice_that_push_can_take(hub, bundle, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (bundle.parent, tmp_path / "nowhere", tmp_path / "file"):
        result = push(folder, "me/model")
        assert result.exit_code == 2
        assert "expected the folder of a bundle" in result.stderr
        assert "--no-verify" not in result.stderr
    assert not hub.asked


def test_an_upload_that_the_hub_breaks_off_is_a_sentence(hub, bundle, monkeypatch):
    def refuse(self, parts):
        raise hub_server._Refused(403, "", "storage limit reached")

    monkeypatch.setattr(hub_server._Handler, "_put", refuse)
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "me/model could not be uploaded to: the token may not do this" in result.stderr
    assert "model.onnx" not in files_of(hub, "me/model")


def test_a_repository_that_vanishes_is_a_sentence(hub, bundle, monkeypatch):
    monkeypatch.setattr(
        hub_server._Handler, "_create", lambda self, asked: self._json({"url": "", "name": "x"}, 404)
    )
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "the hub does not know it" in result.stderr


def test_without_a_network_and_offline_it_says_so(hub, bundle, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "cannot be reached" in result.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = push(bundle, "me/model")
    assert result.exit_code == 2
    assert "HF_HUB_OFFLINE is set. Unset it" in result.stderr


def test_the_card_of_every_kind_of_report_passes_the_check(bundle):
    from xlmprune.bundle.push import require_card

    for kind in ("text", "pair", "tokens"):
        report = sample_report(5)
        report["task"]["kind"] = kind
        write_report(report, bundle)
        require_card(bundle)
    report["files"] = {}
    write_report(json.loads(json.dumps(report)), bundle)
    require_card(bundle)
