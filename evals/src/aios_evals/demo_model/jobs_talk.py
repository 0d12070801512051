"""Turns without tools: small talk, and requests that a demo model cannot serve."""

from typing import Final

from aios_evals.demo_model.script import Job, Scene, job

ABILITIES: Final = "I am a demo model; I can calculate, look up, remember and recall."
_SMALL_TALK: Final[dict[str, tuple[str, ...]]] = {
    "Hello! I am a demo model. How can I help?": (
        *("hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "greetings", "good day"),
        *("hello!", "hi, how can you help", "hello model", "hey there"),
    ),
    "You are welcome.": (
        *(
            "thanks",
            "thank you",
            "thanks a lot",
            "thank you very much",
            "many thanks",
            "great, thanks",
            "ok, thank you",
        ),
        *("perfect, thanks", "cheers", "thx"),
    ),
    "Goodbye.": ("bye", "goodbye", "see you", "good night", "see you later", "bye bye"),
    "I am fine, thank you. I am only a demo model.": (
        "how are you",
        "how are you today",
        "how do you do",
        "are you ok",
    ),
    ABILITIES: (
        *(
            "who are you",
            "what are you",
            "what can you do",
            "help",
            "what is your name",
            "are you a robot",
            "which tools",
        ),
        *(
            "are you a language model",
            "which model are you",
            "tell me about yourself",
            "introduce yourself",
            "are you gpt",
        ),
        *("how can you help me", "what do you do", "can you help me", "what tools do you have"),
    ),
}
_OPENINGS: Final = (
    *(
        "Write a poem about",
        "Write an essay about",
        "Write a function for",
        "Write",
        "Translate",
        "Explain",
        "Summarise",
    ),
    *(
        "Tell me a story about",
        "Tell me a joke about",
        "Who is",
        "Who won",
        "Where is",
        "When was",
        "Why is",
        "How do I",
    ),
    *(
        "Draw",
        "List",
        "Describe",
        "Book",
        "Send an email to",
        "Sort",
        "Plan a trip to",
        "Compare",
        "Fix",
        "Play",
        "Open",
    ),
    *(
        "Give me ideas for",
        "Search the web for",
        "Show me",
        "Create",
        "Build",
        "Run",
        "Read",
        "Debug",
        "Review",
        "Rewrite",
    ),
    *(
        "What do you think of",
        "Do you like",
        "Is it true that",
        "Should I",
        "Can you write",
        "Please explain",
        "Imagine",
    ),
    *(
        "Generate",
        "Help me with",
        "Act as",
        "Classify",
        "Think about",
        "Discuss",
        "Improve",
        "Analyse",
        "Make",
        "Prove",
    ),
)


@job(2.5)
def talk(s: Scene) -> Job:
    """Small talk with a fixed reply."""
    reply = s.words.pick(*_SMALL_TALK)
    text = s.words.pick(*_SMALL_TALK[reply])
    text = s.words.pick(text, text.capitalize(), text.capitalize(), text.upper() if s.words.chance(0.2) else text)
    asks = reply == ABILITIES or text.lower().startswith("how")
    yield text if text.endswith("!") else text + (s.words.pick("?", "?", "") if asks else s.words.pick("", ".", "!"))
    return reply


@job(3)
def cannot(s: Scene) -> Job:
    """An open-ended request: say what the model can do."""
    w = s.words
    topic = w.pick(w.sentence, w.entity, lambda: f"the {w.sentence()}", lambda: f"a {w.entity()}")()
    yield f"{w.pick(*_OPENINGS)} {topic}{w.pick('.', '.', '?', '')}" if w.chance(0.9) else w.sentence()
    return ABILITIES
