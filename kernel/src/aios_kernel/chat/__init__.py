"""Chats to tokens and back: templates, tool calls, grammars, and the generation loop above the engine."""
