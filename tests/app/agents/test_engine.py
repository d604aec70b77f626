from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import SecretStr

from app.agents.chat_completions import ChatCompletionsEngine
from app.agents.engine import open_engine
from app.agents.extractive import ExtractiveEngine
from app.settings import Settings
from tests.app.agents.recording import Recording

KEY = SecretStr("sk-test")
URL = "http://127.0.0.1:9/v1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("key", "url", "kind"),
    [
        (None, None, ExtractiveEngine),
        (KEY, None, ChatCompletionsEngine),
        (None, URL, ChatCompletionsEngine),
        (KEY, URL, ChatCompletionsEngine),
    ],
)
async def test_a_key_or_an_address_chooses_the_server(
    recorded: Recording, key: SecretStr | None, url: str | None, kind: type
) -> None:
    settings = Settings.model_construct(openai_api_key=key, openai_base_url=url)

    async with open_engine(settings, recorded.telemetry) as engine:
        assert type(engine) is kind


def test_the_client_is_not_imported_without_need() -> None:
    code = "import sys, app.routes.ai; print([name for name in ('openai', 'httpx2') if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
