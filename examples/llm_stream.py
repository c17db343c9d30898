"""A model's answer, live: the tokens are a stream of the run, the state is its metadata.

    milepost dev examples/llm_stream.py        # in one terminal
    python examples/llm_stream.py              # in another

The second prints the words as they come; the run's page in the dashboard shows them too, and how the run stands. With OPENAI_API_KEY
set (and `pip install openai`) a real model answers, otherwise a made-up one, so the example runs without any key.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator

from milepost import metadata, streams, task

ANSWER = (
    "Sunlight holds all colours. On its way through the air it meets molecules that are far smaller than its waves, and these scatter "
    "blue light about ten times as much as red. So blue comes to us from every direction, and the sky looks blue."
)


@task
async def answer(question: str) -> str:
    """Answer a question; whoever watches the run sees each word as it comes."""
    metadata.set("question", question).set("status", "thinking")
    words: list[str] = []
    async for word in metadata.stream("tokens", ask(question)):
        if not words:
            metadata.set("status", "answering")
        words.append(word)
    metadata.set("status", "done").set("tokens", len(words))
    return "".join(words)


def ask(question: str) -> AsyncIterator[str]:
    """The words of a model's answer."""
    return ask_openai(question) if os.environ.get("OPENAI_API_KEY") else ask_nobody()


async def ask_nobody() -> AsyncIterator[str]:
    """A made-up answer at the pace of a model."""
    await asyncio.sleep(0.5)
    for word in ANSWER.split(" "):
        await asyncio.sleep(random.uniform(0.01, 0.08))
        yield f"{word} "


async def ask_openai(question: str) -> AsyncIterator[str]:
    """The answer of a real model."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI() as client:
        stream = await client.chat.completions.create(
            model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
            messages=[{"role": "user", "content": question}],
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


if __name__ == "__main__":
    handle = answer.trigger("Why is the sky blue?")
    for word in streams.read(handle.id, "tokens"):
        print(word, end="", flush=True)
    print("\n--", len(handle.result().unwrap()), "characters")
