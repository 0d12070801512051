"""Open Interpreter: the model's code runs on this machine."""

from interpreter import interpreter

interpreter.auto_run = True
interpreter.disable_telemetry = True
interpreter.llm.model = "gpt-4o"
said = interpreter.chat(
    'What does kiwi_7 cost?\ncall execute {"language": "python", "code": "print(5 * 2.5)"}\n', display=False
)
print("ANSWER", said[-1]["content"].replace("\n", " "))
