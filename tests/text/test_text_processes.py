"""Real text processes: what they answer, what ends them, and that nothing of them is left."""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from support import hostile_texts
from support.tiny import byte_tokenizer

from muxd.api.texts import MODULE
from muxd.errors import BadRequest, ContextTooLong, ModelFolderError, MuxdError, TextBusy, TooLarge
from muxd.text import pool as text_pool
from muxd.text.library import Library, stamp
from muxd.text.pool import TextLimits, TextPool
from muxd.text.tokenizer import Tokenizer
from muxd.text.work import Answer, Elsewhere, Kind, Prepare, Prepared, Source, View, unpacked

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_descriptor_leak")]
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def libuv_is_initialised() -> None:
    import uvloop

    uvloop.run(asyncio.sleep(0))


@pytest.fixture(autouse=True)
def tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(hostile_texts.__file__).parents[1]))


@pytest.fixture(autouse=True)
def a_deadline_is_of_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own seconds a job takes no more on a busy machine; by the clock it may take any number."""
    monkeypatch.setattr(text_pool, "_BUSY", 1e6)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


Make = Callable[..., View]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """A model folder with a byte tokenizer and this template."""

    def make(name: str, template: str | None = PLAIN) -> View:
        path = tmp_path / name
        path.mkdir()
        byte_tokenizer(path)
        if template is not None:
            (path / "chat_template.jinja").write_text(template)
        return View(Source(name, str(path), "", stamp(path)), max_context=512, vocab_size=320, longest=8)

    return make


@asynccontextmanager
async def pool(module: str = MODULE, **limits: float) -> AsyncIterator[TextPool]:
    """Whose jobs wait for a process to start as long as that takes on a busy machine."""
    made = TextPool(module, TextLimits(**{"patience": 600.0, **limits}))  # type: ignore[arg-type]
    made.start()
    try:
        yield made
    finally:
        await made.close()
    assert made.pids == []


def job(kind: Kind, body: object, *views: View, coding: str = "", most: int = 8 << 20) -> Prepare:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Prepare(kind, data, coding, most, {view.source.model: view for view in views})


def chat(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}


async def test_a_conversation_comes_back_as_the_ids_of_its_rendering(folder: Make) -> None:
    view = folder("a", PLAIN)
    async with pool() as texts:
        checked = await texts.check(view.source, 256)
        assert (checked.chat, checked.longest) == (True, 5)
        result = await texts.run(job("chat", chat("a"), view), "a", 100)
    assert isinstance(result, Prepared)
    ids = unpacked(result.prompts[0])
    assert Tokenizer.load(Path(view.source.folder)).decode(ids) == "[user] hi"
    asked = msgspec.msgpack.decode(result.asked)
    assert (asked["model"], asked["temperature"], asked["scores"]) == ("a", 0.5, -1)
    assert "messages" not in asked


async def test_answers_of_tokenize_are_ready_to_send(folder: Make) -> None:
    view = folder("a", None)
    async with pool() as texts:
        result = await texts.run(job("tokenize", {"model": "a", "prompt": "hi"}, view), "a", 20)
        other = await texts.run(job("tokenize", {"model": "b", "prompt": "hi"}, view), "a", 20)
    assert isinstance(result, Answer)
    assert json.loads(result.body)["count"] == 2
    assert other == Elsewhere("b")


async def test_one_key_with_many_texts_keeps_another_waiting_for_one_of_them(folder: Make) -> None:
    view, read = folder("a"), list[str]()
    async with pool(processes=1) as texts:

        async def ask(key: str) -> None:
            await texts.run(job("chat", chat("a"), view), "a", 5000, key=key)
            read.append(key)

        flood = [asyncio.create_task(ask("flood")) for _ in range(20)]
        await asyncio.sleep(0)  # they are all there
        await ask("other")
        assert read.count("flood") <= 1
        await asyncio.gather(*flood)


async def test_what_one_key_holds_is_no_reason_to_refuse_another(folder: Make) -> None:
    view = folder("a")
    async with pool(processes=1, budget=10_000) as texts:
        flood = [
            asyncio.create_task(texts.run(job("chat", chat("a"), view), "a", 5000, key="flood"))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(TextBusy, match="too much text waits"):
            await texts.run(job("chat", chat("a"), view), "a", 5000, key="flood")
        assert await texts.run(job("chat", chat("a"), view), "a", 5000, key="other")
        await asyncio.gather(*flood)


REFUSED: dict[str, tuple[type[MuxdError], str, Callable[[View], Prepare]]] = {
    "no JSON": (BadRequest, "not valid JSON", lambda view: job("chat", b"{", view)),
    "no template": (BadRequest, "has no chat template", lambda view: job("chat", chat("a"), view)),
    "too long for its context": (
        ContextTooLong,
        "more than 4096 bytes",
        lambda view: job("text", {"model": "a", "prompt": "x" * 5000}, view),
    ),
    "too many prompts": (
        BadRequest,
        "more than 1024",
        lambda view: job("text", {"model": "a", "prompt": ["x"] * 1025}, view),
    ),
    "a gzip bomb": (
        TooLarge,
        "larger than 1000",
        lambda view: job("text", zlib.compress(b" " * 5000), view, coding="deflate", most=1000),
    ),
    "gzip that is none": (
        BadRequest,
        "content encoding",
        lambda view: job("text", b"abc", view, coding="gzip"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_refused_there_is_raised_here(folder: Make, what: str) -> None:
    kind, sentence, make = REFUSED[what]
    async with pool(processes=1) as texts:
        with pytest.raises(kind, match=sentence):
            await texts.run(make(folder("a", None)), "a", 100)
        assert texts.restarts == 0


async def test_a_template_that_never_ends_is_the_fault_of_its_request_only(folder: Make) -> None:
    """It gets a 400, its process is replaced, and other models are answered meanwhile and afterwards."""
    endless, good = folder("endless"), folder("good", PLAIN)
    async with pool(hostile_texts.MODULE, processes=2, deadline=2.0) as texts:
        await asyncio.gather(*(texts.check(good.source, 256) for _ in range(2)))  # both processes are there
        hanging = asyncio.create_task(texts.run(job("chat", chat("endless"), endless), "endless", 100))
        answers = [await texts.run(job("chat", chat("good"), good), "good", 100) for _ in range(10)]
        assert all(isinstance(answer, Prepared) for answer in answers)
        assert not hanging.done()
        with pytest.raises(BadRequest, match="chat template took longer than 2 s") as refused:
            await hanging
        assert refused.value.code == "chat_template_failed"
        assert texts.restarts == 1
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 100), Prepared)


async def test_a_suspect_never_has_all_processes(folder: Make) -> None:
    endless, good = folder("endless"), folder("good", PLAIN)
    async with pool(hostile_texts.MODULE, processes=2, deadline=0.5) as texts:
        with pytest.raises(BadRequest):
            await texts.run(job("chat", chat("endless"), endless), "endless", 100)
        many = [
            asyncio.create_task(texts.run(job("chat", chat("endless"), endless), "endless", 100))
            for _ in range(5)
        ]
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 100), Prepared)
        ends = await asyncio.gather(*many, return_exceptions=True)
    assert {type(end) for end in ends} <= {BadRequest, TextBusy}


@pytest.mark.parametrize("model", ["endless", "greedy", "abort"])
async def test_a_template_that_never_compiles_is_refused_when_its_model_is_read(
    folder: Make, model: str
) -> None:
    """Jinja works out constants while it compiles."""
    async with pool(processes=1, memory=1 << 29, deadline=0.5, module=hostile_texts.MODULE) as texts:
        with pytest.raises(ModelFolderError, match=f"the chat template of {model}"):
            await texts.check(folder(model).source, 256)
        assert (await texts.check(folder("good").source, 256)).chat


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("greedy", BadRequest),
        ("abort", BadRequest),
        ("greedy tokens", TextBusy),
        ("endless tokens", TextBusy),
    ],
)
async def test_who_is_at_fault_depends_on_how_far_a_job_was(
    folder: Make, model: str, kind: type[MuxdError]
) -> None:
    """A template is the model's, so trying again is no use; a text may find more room another time."""
    view, good = folder(model), folder("good")
    async with pool(processes=1, memory=1 << 29, deadline=0.5, module=hostile_texts.MODULE) as texts:
        await texts.check(good.source, 256)  # which waits for a process to start, however busy the machine is
        with pytest.raises(kind):
            await texts.run(job("chat", chat(model), view), model, 100)
        await texts.check(good.source, 256)
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 100), Prepared)
        assert texts.restarts == 1


async def test_a_process_that_is_killed_while_it_waits_costs_nobody_a_request(folder: Make) -> None:
    view = folder("a", PLAIN)
    async with pool(processes=1) as texts:
        await texts.check(view.source, 256)
        os.kill(texts.pids[0], signal.SIGKILL)
        assert isinstance(await texts.run(job("chat", chat("a"), view), "a", 100), Prepared)
        assert texts.restarts == 1


async def test_signals_that_ask_for_nothing_it_has_do_not_end_it(folder: Make) -> None:
    view = folder("a", PLAIN)
    async with pool(processes=1) as texts:
        await texts.check(view.source, 256)
        (pid,) = texts.pids
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
            os.kill(pid, number)
        assert isinstance(await texts.run(job("chat", chat("a"), view), "a", 100), Prepared)
        assert (texts.pids, texts.restarts) == ([pid], 0)


async def test_there_is_a_budget_of_bytes(folder: Make) -> None:
    endless, good = folder("endless"), folder("good", PLAIN)
    async with pool(hostile_texts.MODULE, processes=2, deadline=1.5, budget=100_000) as texts:
        hanging = asyncio.create_task(texts.run(job("chat", chat("endless"), endless), "endless", 90_000))
        await asyncio.sleep(0)
        with pytest.raises(TextBusy, match="too much text") as refused:
            await texts.run(job("chat", chat("good"), good), "good", 20_000)
        assert refused.value.retry_after > 0
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 100), Prepared)
        with pytest.raises(BadRequest):
            await hanging
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 90_000), Prepared)


async def test_who_leaves_takes_the_place_of_nobody(folder: Make) -> None:
    view = folder("a", PLAIN)
    async with pool(processes=1, budget=10_000) as texts:
        for _ in range(5):
            leaver = asyncio.create_task(texts.run(job("chat", chat("a"), view), "a", 9_000))
            await asyncio.sleep(0)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            # What has been begun is finished: the budget is free again once another job gets its turn.
            while True:
                await asyncio.sleep(0)
                with contextlib.suppress(TextBusy):
                    await texts.run(job("chat", chat("a"), view), "a", 9_000)
                    break
        assert isinstance(await texts.run(job("chat", chat("a"), view), "a", 100), Prepared)


async def test_a_job_that_nobody_waits_for_ends(folder: Make) -> None:
    """Long before its deadline, and nobody is to blame."""
    endless, good = folder("endless"), folder("good")
    async with pool(hostile_texts.MODULE, processes=1, deadline=3600.0) as texts:
        await texts.check(good.source, 256)
        leaver = asyncio.create_task(texts.run(job("chat", chat("endless"), endless), "endless", 100))
        await asyncio.sleep(0)
        leaver.cancel()
        assert isinstance(await texts.run(job("chat", chat("good"), good), "good", 100), Prepared)
        assert texts.restarts == 1
        assert texts._turns._suspects == {}


async def test_another_tokenizer_than_the_loaded_one_is_refused(folder: Make) -> None:
    view = folder("a", PLAIN)
    file = Path(view.source.folder) / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    async with pool(processes=1) as texts:
        with pytest.raises(ModelFolderError, match="muxctl load a"):
            await texts.run(job("chat", chat("a"), view), "a", 100)


async def test_a_panic_of_the_library_is_a_defect_and_not_the_end(
    folder: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Rust's panics are no Exception. This pattern gives up over a long run of one letter."""
    view = folder("a", PLAIN)
    file = Path(view.source.folder) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a+a+)+b"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    file.write_text(json.dumps(content))
    source = msgspec.structs.replace(view.source, stamp=stamp(file.parent))
    view = msgspec.structs.replace(view, source=source)
    async with pool(processes=1) as texts:
        with pytest.raises(MuxdError, match="the reason is in its log"):
            await texts.run(job("text", {"model": "a", "prompt": "a" * 400}, view), "a", 100)
        assert texts.restarts == 0
    assert "PanicException" in caplog.text


def own(view: View, bos: str) -> View:
    """Its tokenizer is no other's."""
    (Path(view.source.folder) / "special_tokens_map.json").write_text(json.dumps({"pad_token": bos}))
    return view


def test_models_whose_files_say_the_same_share_a_tokenizer(folder: Make) -> None:
    library = Library(held=1)
    first, *others = (library.open(folder(name)).tokenizer for name in "abcd")
    assert all(other is first for other in others)
    assert len(library._known) == 4
    assert library.open(own(folder("e"), "<e>")).tokenizer is not first
    assert len(library._known) == 1


@pytest.mark.parametrize("at_work", [False, True])
async def test_a_text_process_lets_go_of_a_model_that_serves_no_more(folder: Make, at_work: bool) -> None:
    """What it does not hold it reads again, and finds another file."""
    view = folder("a")
    asked = job("text", {"model": "a", "prompt": "b"}, view)
    async with pool(processes=1) as texts:
        await texts.run(asked, "a", 1)
        (Path(view.source.folder) / "tokenizer.json").touch()
        await texts.run(asked, "a", 1)  # it holds it
        if at_work:
            first = asyncio.create_task(texts.run(asked, "a", 1))
            await asyncio.sleep(0)
            texts.forget(view.source)
            await first
        else:
            texts.forget(view.source)
        with pytest.raises(ModelFolderError, match="is not the file"):
            await texts.run(asked, "a", 1)
        assert texts.restarts == 0


def test_the_library_holds_a_few_models(folder: Make) -> None:
    library = Library(held=2)
    views = [own(folder(name, PLAIN), f"<{name}>") for name in "abc"]
    first = library.open(views[0]).tokenizer
    library.open(views[1])
    assert library.open(views[0]).tokenizer is first
    library.open(views[2])  # the second goes
    assert library.open(views[0]).tokenizer is first
    assert len(library._known) == 2


def test_a_text_process_ends_with_the_daemon() -> None:
    code = (
        "import asyncio, os\n"
        "from muxd.text.process import TextProcess\n"
        "async def main():\n"
        f"    process = await TextProcess.spawn({MODULE!r}, 1 << 30)\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd="/") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([ended], [], [], 60)[0]
    os.close(ended)
