"""lm-eval's multiple choice through the HTTP API, which also makes the tokens, and through transformers: the
same scores, choice by choice.

It has an environment of its own, for what it needs would not fit beside muxd's: MUXD_LM_EVAL is its program.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.live import demo_config, demo_folder, live

LM_EVAL = os.environ.get("MUXD_LM_EVAL", "")

pytestmark = [pytest.mark.clients, pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(1200)]
QUESTIONS = [
    ("The capital of France is", ["Paris", "Berlin", "a river", "seven"], 0),
    ("Two plus two is", ["five", "four", "blue", "Rome"], 1),
    ("Water freezes at a temperature of", ["a hundred apples", "yellow", "zero degrees Celsius"], 2),
    ("The opposite of hot is", ["warm", "cold", "seventeen", "banana"], 1),
    ("Cats are", ["animals", "numbers", "planets", "mathematical theorems"], 0),
    ("The sun rises in the", ["west", "fridge", "east", "evening of the day before"], 2),
    ("She opened the door and went", ["inside", "purple", "of", "the"], 0),
    ("In 1969 a man walked on the", ["moon", "soup", "letter Q", "sun"], 0),
    ("A week has", ["nine days", "seven days", "no days at all"], 1),
    ("The author of Hamlet is", ["William Shakespeare", "Isaac Newton", "a horse"], 0),
    ("Ice is made of", ["fire", "water", "electricity", "poems"], 1),
    ("Bees make", ["honey", "cars", "law"], 0),
]
TASK = """
task: few_facts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{bos}{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def scores(folder: Path, out: str, model: str, arguments: str) -> tuple[dict[str, Any], list[list[float]]]:
    """The metrics, and the log-probability of each choice of each question."""
    command = [
        LM_EVAL,
        "--model",
        model,
        "--model_args",
        arguments,
        "--tasks",
        "few_facts",
        "--include_path",
        folder,
    ]
    command += ["--output_path", folder / out, "--log_samples", "--batch_size", "1"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / out).rglob("results_*.json")
    (samples,) = (folder / out).rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    found = [[float(answer[0]) for answer in row["filtered_resps"]] for row in rows]
    return json.loads(results.read_text())["results"]["few_facts"], found


@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_scores_are_transformers(name: str, tmp_path: Path) -> None:
    if not LM_EVAL or not (demo_folder(name) / "config.json").is_file():
        pytest.skip("MUXD_LM_EVAL names no lm-eval, or the demo models are not there (`make demo`)")
    data = tmp_path / "facts.jsonl"
    lines = [{"question": q, "choices": choices, "answer": answer} for q, choices, answer in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, lines)))
    # Over the API lm-eval adds none, whatever the model needs.
    bos = "<bos>" if name == "gemma" else ""
    (tmp_path / "few_facts.yaml").write_text(TASK.format(data=data, bos=bos))
    with live(demo_config(name, dtype="float32"), tmp_path) as daemon:
        arguments = (
            f"model={name},base_url={daemon.url}/v1/completions,tokenizer_backend=remote,"
            "tokenized_requests=True,num_concurrent=4,max_length=2048"
        )
        ours, logprobs = scores(tmp_path, "ours", "local-completions", arguments)
    theirs, wanted = scores(tmp_path, "theirs", "hf", f"pretrained={demo_folder(name)},dtype=float32")
    for one, other in zip(logprobs, wanted, strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    for metric in ("acc,none", "acc_norm,none"):
        assert ours[metric] == theirs[metric]
    assert ours["acc,none"] > 0.5
