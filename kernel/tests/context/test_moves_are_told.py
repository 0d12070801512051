"""Parked contexts that are moved are told in the order in which it happened."""

from __future__ import annotations

from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.context.manager import ContextManager
from aios_kernel.engine.fake import fake_model
from aios_kernel.process import Program
from aios_kernel.syscalls import LlmChat, Message


def test_out_in_and_given_up() -> None:
    model = fake_model()
    contexts = ContextManager(model.engine, model.codec.load_grammar)
    parking = contexts.parking
    parking.switch(on=True)
    program = Program(id="p", agent="a", principal="user", group="user")
    order = ChatService(model, Config()).prepare(1, LlmChat(messages=[Message("user", "one two")]), program).order
    context = model.engine.open(order.prompt, sampling=order.sampling)
    model.engine.step([(context, context.pending)])
    parking.park(order, context, 0.0)
    assert parking.stow("p")
    assert not parking.stow("p")
    assert parking.fetch("p")
    assert not parking.fetch("p")
    assert parking.drop("p")
    assert not parking.drop("p")
    assert [(move.program, move.kind) for move in parking.moves] == [("p", "swap_out"), ("p", "swap_in"), ("p", "drop")]
    assert {move.tokens for move in parking.moves} == {len(order.prompt)}
    contexts.close()
