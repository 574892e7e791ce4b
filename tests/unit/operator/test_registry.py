"""The operator's registry client against answers that the registry of the integration tests does not give."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from slipway.registry import MAX_MANIFEST, DeleteForbiddenError, Registry, RegistryError, RejectedError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DIGEST = f"sha256:{'a' * 64}"


@asynccontextmanager
async def served(handler: Handler, credentials: Path | None = None) -> AsyncIterator[Registry]:
    """A client of a registry that answers every request by `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:
        yield Registry(session, f"127.0.0.1:{runner.addresses[0][1]}", is_plain=True, credentials=credentials)
    await runner.cleanup()


def always(status: int, body: bytes = b"", **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return answer


def secret(folder: Path, host: str, **entry: str) -> Path:
    (folder / ".dockerconfigjson").write_text(json.dumps({"auths": {host: entry}}))
    return folder


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (405, b"", DeleteForbiddenError),
        (501, b"", DeleteForbiddenError),
        (400, b'{"errors": [{"code": "UNSUPPORTED"}]}', DeleteForbiddenError),
        (403, b"", RejectedError),
        (401, b"", RejectedError),
        (500, b"", RegistryError),
        (404, b"", None),
    ],
)
async def test_answers_to_a_deletion(status: int, body: bytes, error: type[RegistryError] | None) -> None:
    async with served(always(status, body)) as registry:
        if error is None:
            assert await registry.delete("a/b", DIGEST) is False
        else:
            with pytest.raises(RegistryError) as caught:
                await registry.delete("a/b", DIGEST)
            assert type(caught.value) is error


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_a_registry_may_keep_its_repositories_to_itself(status: int) -> None:
    async with served(always(status)) as registry:
        assert await registry.repositories() is None


async def test_lists_come_in_pages() -> None:
    async def pages(request: web.Request) -> web.Response:
        last = int(request.query.get("last", "0"))
        headers = {"Link": f'</v2/a/tags/list?n=2&last={last + 2}>; rel="next"'} if last < 4 else {}
        return web.json_response({"tags": [str(last + 1), str(last + 2)] if last < 4 else None}, headers=headers)

    async with served(pages) as registry:
        assert await registry.tags("a") == ["1", "2", "3", "4"]


async def test_a_list_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipway.registry.MAX_PAGES", 3)
    async with served(always(200, b'{"tags": ["x"]}', Link='</v2/a/tags/list?n=1>; rel="next"')) as registry:
        with pytest.raises(RegistryError, match="lists more than"):
            await registry.tags("a")


async def test_a_manifest_is_what_its_bytes_say() -> None:
    body = b'{"config": {"mediaType": "image"}}'
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    async with served(always(200, body)) as registry:
        found = await registry.manifest("a", "tag")
        assert found is not None
        assert (found.digest, found.artifact_type) == (digest, "image")
        with pytest.raises(RegistryError, match="something else"):
            await registry.manifest("a", DIGEST)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"config": 1}'])
async def test_a_manifest_that_is_none_has_no_type(body: bytes) -> None:
    async with served(always(200, body)) as registry:
        found = await registry.manifest("a", "tag")
        assert found is not None
        assert found.artifact_type == ""


async def test_a_manifest_without_an_end_is_refused() -> None:
    async with served(always(200, b"x" * (MAX_MANIFEST + 1))) as registry:
        with pytest.raises(RegistryError, match="something else"):
            await registry.manifest("a", "tag")


async def test_a_registry_that_is_away() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(RegistryError, match="does not answer"):
            await Registry(session, "127.0.0.1:1", is_plain=True).tags("a")


@pytest.mark.parametrize("field", ["token", "access_token"])
async def test_a_token_is_asked_for_once_for_each_repository(tmp_path: Path, field: str) -> None:
    asked: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/token":
            asked.append((request.query["scope"], request.headers.get("Authorization")))
            return web.json_response({field: request.query["scope"]})
        repository = request.path.removeprefix("/v2/").removesuffix("/tags/list")
        if request.headers.get("Authorization") == f"Bearer repository:{repository}:pull,push,delete":
            return web.json_response({"tags": [repository]})
        challenge = f'Bearer realm="http://{request.host}/token",service="r",scope="repository:{repository}:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with served(answer, tmp_path) as registry:
        secret(tmp_path, registry.host, auth=base64.b64encode(b"u:p").decode())
        assert [await registry.tags(name) for name in ("a", "b", "a")] == [["a"], ["b"], ["a"]]
    basic = "Basic " + base64.b64encode(b"u:p").decode()
    assert asked == [(f"repository:{name}:pull,push,delete", basic) for name in ("a", "b")]


async def test_a_changed_secret_is_read_again(tmp_path: Path) -> None:
    password = "old"

    async def answer(request: web.Request) -> web.Response:
        wanted = "Basic " + base64.b64encode(f"u:{password}".encode()).decode()
        if request.headers.get("Authorization") == wanted:
            return web.json_response({"tags": ["x"]})
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with served(answer, tmp_path) as registry:
        for password in ("old", "new"):
            secret(tmp_path, registry.host, username="u", password=password)
            assert await registry.tags("a") == ["x"]
        secret(tmp_path, registry.host, username="u", password="wrong")
        password = "newer"
        with pytest.raises(RejectedError, match="credentials are missing or may not delete"):
            await registry.tags("a")
        (tmp_path / ".dockerconfigjson").write_text("{")
        with pytest.raises(RejectedError, match="malformed"):
            await registry.tags("a")
        secret(tmp_path, "elsewhere")
        with pytest.raises(RejectedError):
            await registry.tags("a")


async def test_credentials_stay_with_their_host(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def store(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=201)

    async with served(store) as elsewhere:

        async def answer(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            if request.method == "POST":
                away = f"http://localhost:{elsewhere.host.rpartition(':')[2]}/upload?state=a%2Fb"
                return web.Response(status=202, headers={"Location": away})
            return web.Response(status=404 if request.method == "HEAD" else 201)

        async with served(answer, tmp_path) as registry:
            secret(tmp_path, registry.host, username="u", password="p")
            await registry.put_empty("a", "mark", "type", {"k": "v"})
    assert seen == [None]
