"""Deployments: what is taken, and that every mistake is told with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tersor.core.errors import FormatError, MissingError, SchemeError, TersorError
from tersor.deploy.config import Limits, read_deployment
from tersor.deploy.running.opening import ENGINES

pytest.importorskip("yaml", reason="reads deployments: pip install 'tersor[serve]'")
GOOD = """
port: 9000
models:
  chat:
    primary: small
    fallback: full
    variants:
      small: {engine: llama.cpp, path: sub/small.gguf, threads: 2}
      full: {engine: llama.cpp, embedded: f16}
    limits: {in_flight: 3}
"""
WRONG = {
    "no mapping": ("[1]", "names with values are wanted"),
    "no models": ("port: 9", "models: names with values"),
    "empty models": ("models: {}", "names no models"),
    "unknown key": (GOOD + "colour: red\n", "unknown colour; there are models, host, port"),
    "bad name": (GOOD.replace("chat:", "'../chat':"), "'../chat' is no name"),
    "no variant": (GOOD.replace("primary: small", "primary: tiny"), "models.chat.primary: no variant 'tiny'"),
    "twice the same": (GOOD.replace("fallback: full", "fallback: small"), "the same variant as primary"),
    "unknown engine": (
        GOOD.replace("llama.cpp, path", "vllm, path"),
        "variants.small: no engine 'vllm'; there are llama",
    ),
    "a remote one with an artefact": (
        GOOD.replace("llama.cpp, path", "openai, url: 'http://h', model: m, path"),
        "small: engine openai needs url and model, and no artefact",
    ),
    "a remote one without a model": (
        GOOD.replace("llama.cpp, path: sub/small.gguf", "openai, url: 'http://h'"),
        "small: engine openai needs url and model",
    ),
    "an address that is none": (
        GOOD.replace("llama.cpp, path: sub/small.gguf", "openai, model: m, url: 'file:///etc/passwd'"),
        "small.url: .*begins with http",
    ),
    "a password in an address": (
        GOOD.replace("llama.cpp, path: sub/small.gguf", "openai, model: m, url: 'http://a:b@h'"),
        "small.url: .*send them in a header",
    ),
    "a key for its name": (
        GOOD.replace("llama.cpp, path: sub/small.gguf", "openai, model: m, url: 'http://h', key_env: sk-1234"),
        "small.key_env: the name of an environment variable is wanted, and never a key itself",
    ),
    "an address of a local one": (GOOD.replace("threads: 2", "url: 'http://h'"), "url, model and key_env are for"),
    "text and tensors": (
        GOOD.replace("llama.cpp, path: sub/small.gguf", "v2, model: m, url: 'http://h'"),
        "models.chat.variants: some take text and others tensors",
    ),
    "embedded for another": (GOOD.replace("llama.cpp, embedded", "onnxruntime, embedded"), "for llama.cpp alone"),
    "an order of weights": (GOOD.replace("threads: 2", "layout: false"), "small.layout: for onnxruntime alone"),
    "a word for true": (GOOD.replace("threads: 2", "layout: 1"), "small.layout: true or false"),
    "batches of text": (GOOD.replace("threads: 2", "max_batch: 4"), "small.max_batch: for onnxruntime, torch"),
    "waiting for nobody": (GOOD.replace("threads: 2", "max_wait_ms: 4"), "max_wait_ms: without max_batch"),
    "no milliseconds": (GOOD.replace("threads: 2", "max_wait_ms: 0"), "small.max_wait_ms: milliseconds above 0"),
    "no path": (GOOD.replace("path: sub/small.gguf, ", ""), "the path of an artefact is wanted"),
    "outside": (GOOD.replace("sub/small.gguf", "../../etc/passwd"), "lies outside of the deployment's folder"),
    "absolute": (GOOD.replace("sub/small.gguf", "/etc/passwd"), "lies outside of the deployment's folder"),
    "through a link": (GOOD.replace("sub/small.gguf", "link/small.gguf"), "lies outside of the deployment's folder"),
    "not there": (GOOD.replace("sub/small.gguf", "sub/large.gguf"), "sub/large.gguf is not there"),
    "text for a number": (
        GOOD.replace("threads: 2", "threads: two"),
        "small.threads: a whole number from 1 to 2147483647, not 'two'",
    ),
    "true for a number": (
        GOOD.replace("in_flight: 3", "in_flight: true"),
        "limits.in_flight: a whole number from 1 to 2147483647",
    ),
    "a port": (GOOD.replace("9000", "99999"), "port: a whole number from 1 to 65535, not 99999"),
    "more than engines count": (
        GOOD.replace("in_flight: 3", "in_flight: 99999999999999999999"),
        "limits.in_flight: a whole number from 1 to",
    ),
    "zero": (
        GOOD.replace("in_flight: 3", "in_flight: 0"),
        "limits.in_flight: a whole number from 1 to 2147483647, not 0",
    ),
    "no seconds": (GOOD.replace("in_flight: 3", "deadline_s: .inf"), "limits.deadline_s: seconds above 0"),
    "open to others": (GOOD + "host: 0.0.0.0\n", "open to others: give keys, or listen on 127.0.0.1"),
    "a secret for its hash": (GOOD + "keys: [{name: a, sha256: secret}]\n", "'a' needs the SHA-256 of its secret"),
    "a key without a hash": (GOOD + "keys: [{name: a}]\n", r"keys\[0\]: .*sha256"),
    "a registry outside": (
        GOOD + "registry: ../outside\n",
        "registry: ../outside lies outside of the deployment's folder",
    ),
    "no registry": (GOOD + "registry: none\n", "registry: none is not there"),
    "an audit log outside": (GOOD + "audit: link/log\n", "audit: link/log lies outside of the deployment's folder"),
    "two keys of one name": (
        GOOD + f"keys: [{', '.join([f'{{name: a, sha256: {64 * chr(97)}}}'] * 2)}]\n",
        "each needs a printable name of its",
    ),
    "rights that are no flag": (GOOD + f"keys: [{{name: a, sha256: {64 * 'a'}, admin: 1}}]\n", "admin: true or false"),
    "keys that are no list": (GOOD + "keys: 3\n", "keys: a list of name, sha256"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "small.gguf").write_bytes(b"GGUF")
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "small.gguf").write_bytes(b"GGUF")
    (made / "link").symlink_to(tmp_path / "outside")
    return made


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "deploy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_is_left_out_has_a_default(folder: Path) -> None:
    found = read_deployment(written(folder, GOOD))
    plan = found.models["chat"]
    assert (found.port, found.host, found.keys) == (9000, "127.0.0.1", ())
    assert plan.limits == Limits(in_flight=3)
    assert plan.variants["small"].path == str((folder / "sub" / "small.gguf").resolve())
    assert plan.variants["small"].threads == 2
    assert (plan.variants["full"].embedded, plan.variants["full"].path) == ("f16", "")


MONITOR = """
monitor:
  look_every_s: 2
  limits: {HighErrorShare: 0.02, SlowAnswers: {limit: 2, for_s: 60}}
  silences:
    - {alert: LowAccuracy, model: chat, until: 2027-01-02T03:04:05Z}
    - {alert: LowAgreement, until: "2027-01-02T03:04:05+01:00"}
  webhook_env: HOOK
  mail: {host: h, sender: a@x.org, to: b@x.org, user: ann, password_env: WORD}
"""


def test_what_is_said_of_the_watch_is_taken(folder: Path) -> None:
    found = read_deployment(written(folder, GOOD + MONITOR)).monitor
    assert (found.look_every_s, found.webhook_env) == (2, "HOOK")
    assert (found.rules["HighErrorShare"].limit, found.rules["SlowAnswers"].for_s) == (0.02, 60)
    assert found.mail is not None
    assert (found.mail.to, found.mail.port, found.mail.security) == (("b@x.org",), 587, "starttls")
    first, second = found.silences
    assert first.covers("LowAccuracy", "chat", 1_798_859_044.9)
    assert not first.covers("LowAccuracy", "chat", 1_798_859_045.1)
    assert not first.covers("LowAccuracy", "other", 0)
    assert not first.covers("LowAgreement", "chat", 0)
    assert second.covers("LowAgreement", "other", 1_798_855_444.9)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("look_every_s: 2", "look_every_s: 0", "monitor.look_every_s: seconds above 0, not 0"),
        ("look_every_s", "look_often", "monitor: unknown look_often; there are references"),
        ("HighErrorShare: 0.02", "Sorrow: 1", "no alert 'Sorrow'"),
        ("alert: LowAccuracy", "alert: Sorrow", "no alert 'Sorrow'"),
        ("03:04:05Z", "03:04:05", "is no time with its zone"),
        ("2027-01-02T03:04:05Z", "2027-01-02", "is no time with its zone"),
        ("model: chat", "modell: chat", r"monitor.silences\[0\]: unknown modell"),
        ("HOOK", "https://h/secret", "webhook_env: the name of an environment variable is wanted"),
        ("host: h, ", "", "monitor.mail: missing 1 required"),
        ("to: b@x.org", "to: []", "must be a plain address"),
    ],
)
def test_a_mistake_in_the_watch_is_told(old: str, new: str, words: str, folder: Path) -> None:
    with pytest.raises(SchemeError, match=words):
        read_deployment(written(folder, GOOD + MONITOR.replace(old, new)))


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_its_place(case: str, folder: Path) -> None:
    text, words = WRONG[case]
    with pytest.raises((SchemeError, MissingError), match=words):
        read_deployment(written(folder, text))


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", "models: [", "!!python/object/apply:os.system [id]", "a: &a [*a]", "[" * 20_000, "a" * 2_000_000],
)
def test_what_is_no_deployment_is_refused(text: str | bytes, folder: Path) -> None:
    with pytest.raises(TersorError):
        read_deployment(written(folder, text))


def test_a_name_that_stands_twice_is_told_with_both_lines(folder: Path) -> None:
    text = GOOD + "port: 9001\n"
    with pytest.raises(FormatError, match=r"deploy\.yaml: 'port' stands twice, in lines 2 and 11; keep one"):
        read_deployment(written(folder, text))
    twice = GOOD.replace("      full:", "      small: {engine: llama.cpp, embedded: f16}\n      full:")
    with pytest.raises(FormatError, match="'small' stands twice, in lines 8 and 9"):
        read_deployment(written(folder, twice))


def test_yaml_that_grows_is_refused_in_time(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(SchemeError, match="models"):
        read_deployment(written(folder, "\n".join(lines)))


def test_a_deployment_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"deploy.yaml: no such deployment"):
        read_deployment(tmp_path / "deploy.yaml")


def test_a_file_that_is_too_large_is_not_read(folder: Path) -> None:
    with pytest.raises(FormatError, match="bytes are no deployment"):
        read_deployment(written(folder, "#" * (2 << 20)))


BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGE = HOW_TO / "serve-a-model.md"
PAGES = [PAGE, HOW_TO / "monitor.md"]
BLOCKS = [block for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8")) if "scrape" not in block]


@pytest.mark.parametrize("block", BLOCKS)
def test_deployments_in_the_documentation_can_be_deployed(block: str, tmp_path: Path) -> None:
    block = block.replace("sha256: …", f"sha256: {'a' * 64}")
    block += (
        "" if "models:" in block else "models: {a: {primary: b, variants: {b: {engine: llama.cpp, embedded: f16}}}}"
    )
    for name in re.findall(r"(?:path|registry): ([\w.-]+)", block):
        (tmp_path / name).touch()
    assert read_deployment(written(tmp_path, block)).models


def test_the_documentation_names_every_engine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in ENGINES if f"| `{name}` |" not in text] == []
