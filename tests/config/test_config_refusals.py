"""A wrong setting is refused with its file, its key and what is wrong."""

from pathlib import Path

import pytest

from muxd.config_load import load
from muxd.errors import ConfigError

MODEL = '[[model]]\nname = "a"\npath = "a"\n'
LORA = "[[model]]\nname = 'x'\nbase = 'a'\nlora = 'y'\n"
TWO = "[[device]]\nname = 'cpu:0'\ncores = [0]\n[[device]]\nname = 'cpu:1'\ncores = [1]\n"
MESH = "[[device]]\nname = 'cpu:2+cpu:3'\ncores = [2, 3]\n"


def refusal(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> str:
    file = tmp_path / "muxd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, env=env or {})
    assert str(file) in caught.value.message or env
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", ("server", "`prot`")),
        ("[sever]\nport = 1", ("`sever`",)),
        ("[server]\nport = '1'", ("server.port", "`int`", "`str`")),
        ("[server]\nport = 70000", ("server.port", "70000")),
        ("[server]\nlog_level = 'loud'", ("server.log_level", "loud")),
        ("[server]\nshutdown_grace = 0", ("server.shutdown_grace", "above 0")),
        ("[server]\nshutdown_grace = nan", ("server.shutdown_grace", "nan")),
        ("[scheduler]\ndrain_timeout = inf", ("scheduler.drain_timeout", "inf")),
        ("[server]\ntraces = 'localhost:4318'", ("server.traces", "http://127.0.0.1:4318/v1/traces")),
        ("[server]\ntraces = 'http://a:b@host/'", ("server.traces", "OTEL_EXPORTER_OTLP_HEADERS")),
        ("[server]\ntraces = 'http://[::1'", ("server.traces", "is no URL")),
        ("[server]\nmax_body = 'big'", ("server.max_body", "'big'")),
        ("server = 3", ("server", "`object`", "`int`")),
        ("[pool]\nblock_bytes = 5000", ("pool.block_bytes", "5000", "power of two")),
        ("[pool]\nblock_bytes = 512", ("pool.block_bytes", "512")),
        ("[pool]\nbytes = '4K'", ("pool.bytes", "8192")),
        ("[pool]\nbytes = 'x'", ("pool.bytes", "'x'")),
        ("[scheduler]\noverbook = 101", ("scheduler.overbook", "100")),
        ("[scheduler]\nlook_ahead = -1", ("scheduler.look_ahead", "-1")),
        ("a = " + "[" * 100_000, ("not valid TOML", "nested too deeply")),
        ("[server]\nport = " + "9" * 5000, ("not valid TOML", "4300 digits")),
        ("[server]\nport = " + "9" * 4000, ("server.port", "is not a port")),
        ("[server]\nshutdown_grace = " + "9" * 400, ("server.shutdown_grace",)),
        (MODEL + "max_queue = " + "9" * 400, ("model.max_queue (a)", "above 0 and finite")),
        (MODEL + f"quota = {{ min = '{'9' * 5000}' }}", ("model.quota.min (a)", "more than there can be")),
        (MODEL + f"quota = {{ min = '{'9' * 300}' }}", ("model.quota.min (a)", "more than there can be")),
        (MODEL + f"quota = {{ max = '{'9' * 5000}%' }}", ("model.quota.max (a)", "is not a size")),
        ("[pool]\nbytes = '99999999999999999999G'", ("pool.bytes", "more than there can be")),
        ("[scheduler]\npolicy = 'lifo'", ("scheduler.policy", "lifo")),
        ("[scheduler]\nadmission = 'fast'", ("scheduler.admission", "fast")),
        ("[scheduler]\nadapt_period = 0", ("scheduler.adapt_period", "above 0")),
        ("[scheduler]\nadmission = 'slo'\n" + MODEL, ("scheduler.admission", "ttft_slo")),
        ("[model]\nname = 'a'\npath = 'a'", ("model", "`array`")),
        ("[[model]]\nname = 'a'", ("model.path", "must name a model folder (a)")),
        (MODEL + LORA.replace("base = 'a'", ""), ("model.base", "is missing", "(x)")),
        (MODEL + LORA.replace("lora = 'y'", ""), ("model.lora", "is missing", "(x)")),
        (MODEL + LORA.replace("base = 'a'", "base = 'b'"), ("model.base: 'b' (x)", "there are: a")),
        (MODEL + LORA + LORA.replace("'x'", "'z'").replace("'a'", "'x'"), ("model.base: 'x' (z)",)),
        (MODEL + LORA + "path = 'p'", ("model.path", "(x)", "for its base, 'a'")),
        (MODEL + LORA + "quota = { min = '1M' }", ("model.quota", "(x)", "for its base, 'a'")),
        (MODEL + LORA + "share = 5", ("model.share", "(x)", "for its base, 'a'")),
        ("[[model]]\nname = ''\npath = 'a'", ("model.name", "empty")),
        ("[[model]]\nname = 'a'\npath = ''", ("model.path", "(a)")),
        (MODEL + MODEL, ("model.name", "'a'", "differ")),
        (MODEL + "share = 101", ("model.share", "101", "(a)")),
        (MODEL + "dtype = 'int8'", ("model", "dtype", "int8", '"auto", "bf16", "bfloat16"')),
        (MODEL + "kv_dtype = 'int8'", ("model[0].kv_dtype", "'int8'", 'write one of "auto", "fp8"')),
        (MODEL + "pooling = 'max'", ("model[0].pooling", "'max'", '"last", "mean"')),
        (MODEL + "kv_dtype = 8", ("model[0].kv_dtype", "`int`")),
        ("[scheduler]\npolicy = 'best'", ("scheduler.policy", "'best'", '"mux"', '"temporal"')),
        (MODEL + "max_running = -1", ("model.max_running (a)", "not be negative")),
        (MODEL + "max_context = -5", ("model.max_context (a)", "-5")),
        (MODEL + "quota = { min = '1x' }", ("model.quota.min (a)", "'1x'")),
        (MODEL + "quota = { min = '60%', max = '50%' }", ("model.quota (a)", "60%", "50%")),
        (MODEL + "quota = { least = '1M' }", ("quota", "`least`")),
        (
            "[server]\ndevice = 'cpu'\n" + MODEL + "quota = { min = '2G' }",
            ("model.quota (a)", "'2G'", "'100%'"),
        ),
        (MODEL + "quota = { weight = 0 }", ("model.quota.weight (a)", "above 0")),
        (MODEL + "quota = { weight = nan }", ("model.quota.weight (a)", "nan")),
        (MODEL + "ttft_slo = -0.5", ("model.ttft_slo (a)", "-0.5")),
        (MODEL + "tpot_slo = inf", ("model.tpot_slo (a)", "inf")),
        (MODEL + "ttft_slo = '2s'", ("ttft_slo", "`float`", "`str`")),
        ("[server", ("not valid TOML",)),
        (TWO + "[[device]]\nname = 'tpu:0'", ("device.name", "'tpu:0'", "cuda:0")),
        (TWO + "[[device]]\nname = 'cuda:0'", ("device.name", "one kind")),
        (TWO + "[[device]]\nname = 'cpu:1'\ncores = [2]", ("device.name", "two devices", "'cpu:1'")),
        (TWO + "[[device]]\nname = 'cpu:2'\ncores = [1]", ("device (cpu:2)", "cores", "1 is cpu:1's")),
        (TWO + "[[device]]\nname = 'cpu:2'", ("device (cpu:2)", "cores = [0, 1]")),
        ("[[device]]\nname = 'cuda:0'\ncores = [0]", ("device (cuda:0)", "cores")),
        ("[[device]]\nname = 'cpu:0'\npool = '5'", ("device.pool (cpu:0)", "'5'", "8192")),
        ("[[device]]\nname = 'cpu:0'\nmemory = 'x'", ("device (cpu:0)", "memory", "'x'")),
        ("[[device]]\nname = 'cpu:0'\n[server]\ndevice = 'cpu'", ("server.device", "not both")),
        (TWO + "[[device]]\nname = 'cpu:2+cuda:0'", ("device.name", "'cpu:2+cuda:0'", "a mesh such as")),
        (TWO + "[[device]]\nname = 'cpu:2+cpu:1'\ncores = [2, 3]", ("device.name", "cpu:1 is there twice")),
        (MESH.replace("[2, 3]", "[2, 3, 4]"), ("cpu:2+cpu:3", "cores", "3 are not divided evenly over 2")),
        (MESH.replace("cores = [2, 3]", ""), ("cpu:2+cpu:3", "cores = [0, 1]")),
        (MODEL + "tp = 0", ("model.tp", "at least 1 (a)")),
        (MODEL + "tp = 2", ("model.tp", "2 (a)", 'name = "cuda:0+cuda:1"')),
        (MESH + MODEL + "tp = 3", ("model.tp", "3 (a)", "no [[device]]")),
        (
            TWO + MESH + MODEL + "tp = 2\ndevice = 'cpu:0'",
            ("model.tp", "'cpu:0' is 1", "a mesh"),
        ),
        (MESH + MODEL + "tp = 2\nweights = 'int8'", ("model.weights", "'int8' (a) with tp = 2")),
        (MESH + MODEL + "tp = 2\ncpu_step = 'native'", ("model.cpu_step", "'native' (a) with tp = 2")),
        (MODEL + "device = 'cpu:0'", ("model.device", "'cpu:0'", "none in [[device]]")),
        (TWO + MODEL + "device = 'cpu:7'", ("model.device", "'cpu:7'", "cpu:0, cpu:1")),
        (TWO + MODEL + "device = 'cpu:0'\nquota = { min = '2G' }", ("model.quota (a)",)),
        (MODEL + "rate = -1", ("model.rate (a)", "-1")),
        ("[placement]\nperiod = 0", ("placement.period", "above 0")),
        ("[placement]\nleast_gain = -1", ("placement.least_gain", "negative")),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == [], message


def test_guarantees_are_added_up(tmp_path: Path) -> None:
    three = "".join(f'[[model]]\nname = "{n}"\npath = "m"\nquota = {{ min = "40%" }}\n' for n in "abc")
    assert "together 120 % of the pool" in refusal(tmp_path, three)
    half = three.replace("40%", "600M")
    assert "together 175 % of the pool" in refusal(tmp_path, f'[server]\ndevice = "cpu"\n{half}')
    (tmp_path / "auto.toml").write_text(half)
    load(tmp_path / "auto.toml", env={})  # a GPU's pool may hold that


@pytest.mark.parametrize(
    ("name", "value"),
    [("MUXD_PORT", "eighty"), ("MUXD_SCHEDULER_OVERBOOK", "1.5"), ("MUXD_LOG_LEVEL", "loud")],
)
def test_a_wrong_environment_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    message = refusal(tmp_path, MODEL, {name: value})
    assert name in message
    assert value in message


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nope.toml: No such file"):
        load(tmp_path / "nope.toml", env={})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.toml is not valid TOML"):
        load(tmp_path / "bytes.toml", env={})
