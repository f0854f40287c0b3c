"""Codex CLI and Claude Code: one turn of each, without an account. Both are npm packages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.clients, pytest.mark.agents, pytest.mark.timeout(900)]
MODEL = "smollm2-135m-instruct"
PROGRAMS = Path(sys.prefix) / "agents" / "node_modules" / ".bin"
CODEX = """
model = "{model}"
model_provider = "muxd"
model_instructions_file = "brief.md"  # its own are longer than this model's context
check_for_update_on_startup = false
[model_providers.muxd]
name = "muxd"
base_url = "{url}/v1"
env_key = "MUXD_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
stream_idle_timeout_ms = 600000
[features]  # each is a tool or two: 3,000 tokens of 4,700 in all
goals = false
multi_agent = false
image_generation = false
tool_suggest = false
"""
# Codex sends no bound of its own, and this model's answers would end with its context.
RIVERS = ["Nile, Rhine, Volga", "Amazon, Congo, Mekong"]
FORM = {
    "type": "object",
    "properties": {"rivers": {"enum": RIVERS}},
    "required": ["rivers"],
    "additionalProperties": False,
}


def turn(folder: Path, env: dict[str, str], name: str, *arguments: str) -> str:
    """What it prints. Nothing of the user's own settings and accounts is in its environment."""
    if not (PROGRAMS / name).exists():
        pytest.skip(f"{name} is not in {PROGRAMS}: there was no npm when this environment was made")
    (folder / "work").mkdir()
    done = subprocess.run(
        [PROGRAMS / name, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)} | env,
        cwd=folder / "work",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_codex(url: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CODEX.format(model=MODEL, url=url))
    (tmp_path / "brief.md").write_text("Be brief.")
    (tmp_path / "form.json").write_text(json.dumps(FORM))
    said = turn(
        tmp_path,
        {"CODEX_HOME": str(tmp_path), "MUXD_KEY": key},
        "codex",
        *("exec", "--skip-git-repo-check", "--sandbox", "read-only", "--json"),
        *("--output-schema", str(tmp_path / "form.json"), "Name three rivers."),
    )
    events: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (end,) = (event for event in events if event["type"] == "turn.completed")
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    (answer,) = (item["text"] for item in items if item["type"] == "agent_message")
    assert json.loads(answer)["rivers"] in RIVERS
    assert end["usage"]["input_tokens"] > 1000, "the model is told of all its tools"
    assert end["usage"]["output_tokens"] > 0


def test_claude_code(url: str, key: str, tmp_path: Path) -> None:
    said = turn(
        tmp_path,
        {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": key,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1000",
            "DISABLE_AUTOUPDATER": "1",
            "API_TIMEOUT_MS": "600000",
        },
        "claude",
        # Its own instructions and tools are longer than this model's context.
        *("--bare", "--model", "claude-demo", "--system-prompt", "Be brief.", "--tools", "Read"),
        *("--output-format", "json", "-p", "Name three rivers."),
    )
    (result,) = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert (result["subtype"], result["is_error"]) == ("success", False)
    assert result["result"]
    assert result["usage"]["input_tokens"] + result["usage"]["cache_read_input_tokens"] > 200
    assert result["usage"]["output_tokens"] > 0
