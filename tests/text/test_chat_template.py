"""Chat templates: what the ecosystem's templates use works, and a hostile one ends."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from support.tiny import byte_tokenizer
from transformers import AutoTokenizer

from muxd.errors import BadRequest, ConfigError, ModelFolderError
from muxd.text.template import MAX_TEMPLATE_BYTES, ChatTemplate
from muxd.text.tokenizer import Tokenizer

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, **extra: Any) -> str:
    return ChatTemplate(source, SPECIALS, "here").render(messages, **extra)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] }}{{ eos_token }}{% endfor %}",
         "<s>user: hello</s>"),
        ("{% if add_generation_prompt %}\n  go\n{% endif %}\n", "  go\n"),
        ("    {% set x = 1 %}\n{{ x }}", "1"),
        ("{{ {'a': '<é>\"', 'b': [1, none]} | tojson }}", '{"a": "<é>\\"", "b": [1, null]}'),
        ("{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}x{% endfor %}", ""),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hello"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 9] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
         "10"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ f('b') ~ 1 }}", "<a><b>1"),
        ("{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.last }}{% endfor %}",
         "True"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{{ missing }}{{ messages[7] }}", ""),
        ("{{ 'ab' * 2 + '-' + 'c' * 3 }}{{ 3 * 4 + 2 ** 5 }}{{ [1] + [2] }}", "abab-ccc44[1, 2]"),
        ("{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ '{:>3}'.format('y') }}", "bx  y"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str) -> None:
    assert render(source) == expected


def test_a_message_is_data_and_never_a_template() -> None:
    text = "{{ 7 * 7 }}{% for x in y %}{# gone #}{{ messages }}"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text


def test_extra_variables_reach_the_template() -> None:
    assert render("{{ tools[0].name }}", tools=[{"name": "search"}]) == "search"


def test_a_refusal_carries_the_templates_own_sentence() -> None:
    with pytest.raises(BadRequest) as caught:
        render("{{ raise_exception('Roles must alternate user and assistant') }}")
    assert caught.value.message == "Roles must alternate user and assistant"
    assert caught.value.param == "messages"


def test_messages_that_do_not_fit_are_a_bad_request() -> None:
    with pytest.raises(BadRequest, match=r"cannot render these messages: .*unsupported operand"):
        render("{{ 1 + messages[0].content }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set x = 'x' * 9999999 %}{% for i in range(100) %}{{ x }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% set counted = 1 %}{% for a in range(99999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    ],
)
@pytest.mark.timeout(20)
def test_a_hostile_template_ends_as_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest):
        render(source)


def test_the_budget_is_per_render() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}ok", SPECIALS, "here")
    assert [template.render(HELLO) for _ in range(4)] == ["ok"] * 4


def test_the_settings_file_wins_over_the_folder(tmp_path: Path) -> None:
    config = {
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "config"}]
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    own = tmp_path / "own.jinja"
    own.write_text("own")
    found = [ChatTemplate.load(tmp_path, SPECIALS)]
    (tmp_path / "chat_template.jinja").write_text("file")
    found += [ChatTemplate.load(tmp_path, SPECIALS), ChatTemplate.load(tmp_path, SPECIALS, own)]
    assert [template and template.render(HELLO) for template in found] == ["config", "file", "own"]


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path, SPECIALS) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert ChatTemplate.load(tmp_path, SPECIALS) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\n{% for %}", "line 2"),
        (b"\xff\xfe", "not UTF-8"),
        (b" " * (MAX_TEMPLATE_BYTES + 1), "larger than"),
    ],
)
def test_an_unusable_template_names_its_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match=rf"chat_template\.jinja.* {reason}"):
        ChatTemplate.load(tmp_path, SPECIALS)
    with pytest.raises(ConfigError, match=rf"chat_template = .*{reason}"):
        ChatTemplate.load(tmp_path / "elsewhere", SPECIALS, path)


def named(**templates: str) -> str:
    listed = [{"name": name, "template": source} for name, source in templates.items()]
    return json.dumps({"chat_template": listed})


def test_conversations_with_tools_have_a_template_of_their_own(tmp_path: Path) -> None:
    """As transformers chooses by the same folder."""
    byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(named(tool_use="tools", default="plain"))
    template = ChatTemplate.load(tmp_path, SPECIALS)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert template is not None
    tools: list[Any] | None
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        rendered = theirs.apply_chat_template(HELLO, tools=cast(Any, tools), tokenize=False)
        assert template.render(HELLO, tools=tools) == rendered == ("tools" if tools else "plain")
    assert template.render(HELLO) == "plain"


def test_the_only_named_template_is_used_and_several_ask_for_a_choice(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(named(rag="of documents"))
    template = ChatTemplate.load(tmp_path, SPECIALS)
    assert template is not None
    assert template.render(HELLO) == "of documents"
    settings.write_text(named(rag="of documents", tool_use="of tools"))
    with pytest.raises(
        ModelFolderError, match=r'none is the default \(rag, tool_use\): .* chat_template = "FILE"'
    ):
        ChatTemplate.load(tmp_path, SPECIALS)
    own = tmp_path / "own.jinja"
    own.write_text("own")
    template = ChatTemplate.load(tmp_path, SPECIALS, own)
    assert template is not None
    assert template.render(HELLO) == "own"


@pytest.mark.parametrize("folder", ["additional_chat_templates", "chat_templates"])
def test_named_templates_may_be_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "tool_use.jinja").write_text("tools")
    (tmp_path / "chat_template.jinja").write_text("plain")
    template = ChatTemplate.load(tmp_path, SPECIALS)
    assert template is not None
    assert [template.render(HELLO), template.render(HELLO, tools=[])] == ["plain", "tools"]


def test_the_file_of_older_models_that_see(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "seen"}')
    template = ChatTemplate.load(tmp_path, SPECIALS)
    assert template is not None
    assert template.render(HELLO) == "seen"


def test_a_linked_template_is_followed_in_the_hubs_cache_and_not_out_of_a_folder(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "77").write_text("of the hub")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/77")
    (tmp_path / "serve").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "serve"):
        template = ChatTemplate.load(folder, SPECIALS)
        assert template is not None
        assert template.render(HELLO) == "of the hub"
    for target in ("/etc/passwd", "../../../secret"):
        (tmp_path / "secret").write_text("secret")
        (snapshot / "chat_template.jinja").unlink()
        (snapshot / "chat_template.jinja").symlink_to(target)
        with pytest.raises(ModelFolderError, match="is a link out of the model folder"):
            ChatTemplate.load(snapshot, SPECIALS)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chat_template = '.*gone\.jinja': No such file"):
        ChatTemplate.load(tmp_path, SPECIALS, tmp_path / "gone.jinja")


@pytest.mark.demo
def test_the_real_template_renders_as_transformers_does(real_folder: Path, real: Tokenizer) -> None:
    template = ChatTemplate.load(real_folder, real.specials)
    if template is None:
        pytest.skip(f"{real_folder.name} has no chat template")
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(str(real_folder))
    for messages in ([{"role": "system", "content": "Be brief."}, *HELLO], HELLO * 3):
        expected = judge.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert template.render(messages) == expected
        judged: Any = judge.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert real.encode(template.render(messages), add_special=False) == judged["input_ids"]
