"""Inside an agent's scope the OpenAI SDK is served by the kernel; outside it is as it was."""
