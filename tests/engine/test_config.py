"""The configuration: read once, validated, and refused in one line."""

import pytest

from engine.config import ByteSize, Config, ConfigError, load_config, parse_config


def test_nothing_configured_is_the_embedded_model_on_one_cpu():
    config = parse_config({})
    assert [device.name for device in config.devices] == ["cpu"]
    assert config.models[0].path is None
    assert config.models[0].served_name == "gemma-3-270m"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512MiB", 512 * 2**20), ("1.5 GiB", 3 * 2**29), ("2g", 2**31), (1024, 1024), ("0", 0)],
)
def test_sizes(text, num_bytes):
    assert ByteSize.parse(text) == num_bytes


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"modles": []}, ["modles", "unknown key", "models, devices"]),
        ({"scheduler": {"slice": 3}}, ["scheduler.slice", "unknown key", "slice_ms"]),
        ({"devices": [{"name": "cpu", "memory": "2x"}]}, ["devices[0].memory", "2x", "512MiB"]),
        ({"devices": [{"name": "cpu"}]}, ["devices.memory", "cpu"]),
        (
            {"models": [{"dtype": "bfloat16", "deterministic": True}]},
            ["models.deterministic", "cpu", "float32", "bfloat16"],
        ),
        ({"devices": [{"name": "tpu", "memory": 5}]}, ["devices[0].name", "cpu|cuda"]),
        ({"devices": [{"name": "cpu", "memory": 5}] * 2}, ["devices.name", "twice"]),
        ({"devices": [{"name": "cuda"}, {"name": "cuda:0"}]}, ["devices.name", "cuda:0", "same"]),
        (
            {"memory": {"links": [{"between": ["cpu", "host"], "bytes_per_s": 0}]}},
            ["memory.links.bytes_per_s", "0"],
        ),
        ({"models": [{"devices": ["cuda:1"]}]}, ["models.devices", "cuda:1", "cpu"]),
        ({"models": [{"name": "a"}, {"name": "a"}]}, ["models.name", "twice"]),
        ({"models": []}, ["models", "at least one"]),
        ({"scheduler": {"policy": "lottery"}}, ["scheduler.policy", "lottery"]),
        ({"scheduler": {"slice_ms": 5, "min_slice_ms": 9}}, ["scheduler.min_slice_ms", "9", "5"]),
        ({"server": {"port": 70000}}, ["server.port", "65535"]),
        ({"server": {"port": "http"}}, ["server.port", "int", "str"]),
        ({"server": {"allowed_origins": "*"}}, ["server.allowed_origins", "array"]),
        ({"server": {"allowed_origins": ["a.example"]}}, ["server.allowed_origins[0]", "://"]),
        ({"server": {"allowed_origins": ["https://a.example/"]}}, ["server.allowed_origins[0]", "://"]),
        ({"memory": {"page_tokens": 17}}, ["memory.page_tokens", "17"]),
        ({"prefix_cache": {"size": 1}}, ["prefix_cache.size", "unknown key", "enabled"]),
        ({"prefix_cache": {"enabled": 1}}, ["prefix_cache.enabled", "bool"]),
        ({"queue": {"max_prompts": 0}}, ["queue.max_prompts", ">= 1"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_key(table, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(table)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("dummy:llama-3.1-8b", "llama-3.1-8b"),
        ("dummy:/x/tiny/config.json", "tiny"),
        ("/models/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("/models/gemma-3.gguf", "gemma-3"),
    ],
)
def test_served_names_come_from_paths(path, name):
    assert parse_config({"models": [{"path": path}]}).models[0].served_name == name


def test_a_file_is_named_in_complaints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIRSLICE_CONFIG", raising=False)
    assert load_config() == Config()
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load_config("missing.toml")
    (tmp_path / "broken.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_config("broken.toml")
    (tmp_path / "fairslice.toml").write_text("[server]\nport = 9000\n")
    assert load_config().server.port == 9000
    (tmp_path / "other.toml").write_text("[server]\nport = 9001\n")
    monkeypatch.setenv("FAIRSLICE_CONFIG", str(tmp_path / "other.toml"))
    assert load_config().server.port == 9001
