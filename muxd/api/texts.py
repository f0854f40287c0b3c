"""``python -m muxd.api.texts``: a text process. Chat templates and prompts of clients are its work, one at a
time."""

import sys
from functools import partial

from muxd.api.prepare import prepare
from muxd.api.prompts import At
from muxd.config import TextConfig
from muxd.device.behind import aside
from muxd.sizes import size
from muxd.text.library import Library
from muxd.text.pool import TextLimits, TextPool
from muxd.text.serve import run
from muxd.text.token_names import longest
from muxd.text.work import Answered, Check, Checked, Result, Unloaded, Work

MODULE = "muxd.api.texts"


def text_pool(config: TextConfig) -> TextPool:
    """As configured; not started."""
    memory, budget = size(config.memory, key="text.memory"), size(config.budget, key="text.budget")
    return TextPool(MODULE, TextLimits(config.processes, memory, config.deadline, config.deadline, budget))


def handle(library: Library, work: Work, at: At) -> Result:
    """Raises MuxdError for what is wrong with the model's folder or the client's request."""
    if isinstance(work, Unloaded):
        for source in work.sources:
            library.forget(source)
        return Answered()
    if isinstance(work, Check):
        read = partial(_checked, library, work, at)
        return aside(read) if work.aside else read()
    return prepare(work, library, at)


def _checked(library: Library, work: Check, at: At) -> Checked:
    tokenizer, template = library.read(work.source, at)
    thinking = template.thinking if template is not None else ""
    names = tokenizer.names(work.size)
    most = longest(names, tokenizer.pieces)
    return Checked(names, sorted(tokenizer.eos), template is not None, most, thinking)


if __name__ == "__main__":
    sys.exit(run(partial(handle, Library())))
