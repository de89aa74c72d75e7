"""Give me my GPU back, on the real engine: its memory is free, and the batch goes on afterwards."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import deferToThread

from foreman.service import build_service

MODEL, OTHER = "smollm2", "smollm2-4k"
LIMIT_SECONDS = 120


def ask(url: str, body: object = None, method: str | None = None) -> Any:
    """The JSON of an answer, whatever its status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


async def until(true: Callable[[], object], what: str) -> None:
    """Ask in a thread, as this one serves."""
    end = time.monotonic() + LIMIT_SECONDS
    while not await deferToThread(true):
        assert time.monotonic() < end, f"it never came true: {what}"
        await deferToThread(time.sleep, 0.05)


@asynccontextmanager
async def foreman(target: str, folder: Path) -> AsyncIterator[str]:
    """The daemon in this process, from its start to its stop; its address."""
    from twisted.internet import reactor

    service = build_service(
        reactor,
        {
            "FOREMAN_OLLAMA_URL": target,
            "FOREMAN_ADDR": "127.0.0.1:0",
            "FOREMAN_DB_PATH": str(folder / "foreman.db"),
            "FOREMAN_EMBED_MODEL": MODEL,  # one that generates too, and is pinned all the same
            "FOREMAN_POLL_INTERVAL": "500ms",
            "FOREMAN_STOP_GRACE": "1s",
        },
    )
    service.startService()
    try:
        yield f"http://{service._listener}"
    finally:
        await service.stopService()


@pytest.mark.timeout(3 * LIMIT_SECONDS)
async def test_pause_with_unload_and_resume(base_url: str, tmp_path: Path):
    """/api/ps is empty, and stays so over a restart; then every job of the batch succeeds."""

    def loaded() -> list[str]:
        return [entry["name"] for entry in ask(f"{base_url}/api/ps")["models"]]

    def submit(url: str) -> list[str]:
        """
        A story, in whose middle the pause comes, and short ones that wait.

        It is the likeliest story, which goes on for 3 s: of those that are sampled some end after one word.
        """
        asked = {"prompt": "Tell a story.", "raw": True}
        words = [(MODEL, 400), (OTHER, 8), (MODEL, 8), (OTHER, 8)]
        return [
            ask(
                f"{url}/jobs", {"model": model, **asked, "options": {"temperature": 0, "num_predict": count}}
            )["job_id"]
            for model, count in words
        ]

    def is_generating(url: str, job_id: str) -> bool:
        progress = ask(f"{url}/jobs/{job_id}")["progress"]
        return progress is not None and progress["tokens"] > 3

    async with foreman(base_url, tmp_path) as url:
        jobs = await deferToThread(submit, url)
        await until(lambda: is_generating(url, jobs[0]), "the first of them is in its middle")
        assert await deferToThread(loaded) == [f"{MODEL}:latest"]
        wish = {"for": "2h", "unload": True, "now": True}
        paused = (await deferToThread(ask, f"{url}/queue/pause", wish))["paused"]
        assert sorted(paused) == ["durable", "interactive"]
        await until(lambda: ask(f"{url}/queue")["paused"]["durable"]["unload"] == "done", "it is unloaded")
        assert not await deferToThread(loaded)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        refused = await deferToThread(ask, f"{url}/api/chat", chat)
        assert paused["interactive"]["until"] in refused["error"]
        await deferToThread(time.sleep, 1.5)  # three polls, after any of which the embedder would be pinned
        assert not await deferToThread(loaded)
        assert await deferToThread(ask, f"{url}/healthz") == {"status": "ok", "degraded": False}
    async with foreman(base_url, tmp_path) as url:
        await deferToThread(time.sleep, 1.5)
        assert not await deferToThread(loaded)
        again = (await deferToThread(ask, f"{url}/queue"))["paused"]
        for lane, shown in paused.items():
            assert (again[lane]["until"], again[lane]["unload"]) == (shown["until"], "done")
        waiting = await deferToThread(lambda: [ask(f"{url}/jobs/{job_id}") for job_id in jobs])
        assert {job["status"] for job in waiting} == {"queued"}
        assert await deferToThread(ask, f"{url}/queue/resume", None, "POST") == {"paused": {}}
        await until(
            lambda: all(ask(f"{url}/jobs/{job_id}")["finished_at"] for job_id in jobs), "the batch goes on"
        )
        ended = await deferToThread(lambda: [ask(f"{url}/jobs/{job_id}") for job_id in jobs])
        assert {(job["status"], job["attempt"], job["interruptions"]) for job in ended} == {
            ("succeeded", 1, 0)
        }
