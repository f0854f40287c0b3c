"""Without ``server.traces`` nothing of OpenTelemetry is loaded; without the extra it is refused."""

import subprocess
import sys
from pathlib import Path

OFF = """
import sys
from aiohttp import web
from prometheus_client import CollectorRegistry
import muxd.daemon
from muxd.api.traces import SPANS, trace_requests
app = web.Application()
trace_requests(app, "", CollectorRegistry())
print([name for name in sys.modules if name.startswith(("opentelemetry", "requests"))], SPANS in app)
"""


def test_nothing_is_loaded_where_they_are_off() -> None:
    done = subprocess.run([sys.executable, "-c", OFF], cwd="/", capture_output=True, text=True)
    assert done.stdout == "[] False\n", done.stderr


def test_a_daemon_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "muxd.toml").write_text(
        '[server]\ntraces = "http://127.0.0.1:4318"\n[pool]\nbytes = "1M"\n'
        f'[[model]]\nname = "m"\npath = "{tmp_path}"\n'
    )
    options = ["serve", "--config", f"{tmp_path}/muxd.toml", "--port", "0", "--socket", f"{tmp_path}/s"]
    code = f"import sys; sys.modules['opentelemetry'] = None; from muxd.cli.muxd import app; app({options})"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 78
    assert "server.traces" in done.stderr
    assert "pip install 'muxd[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
