"""What an answer says, part by part, in the order in which it says it."""

from msgspec import Struct


class Content(Struct):
    """Text for whoever asked."""

    text: str


class Thought(Struct):
    """Reasoning, which models put before what they say."""

    text: str


class Call(Struct):
    """A call of a tool begins; its arguments follow. Calls of one answer are numbered from 0."""

    index: int
    id: str
    name: str


class Arguments(Struct):
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Saying = Content | Thought | Call | Arguments
