"""The engine as one caller sees it: tenants share it, but not each other's prefixes or limits.

Whether a prompt's beginning is in the prefix cache can be told from the time to its first token.
Each tenant therefore has a salt of its own, so that nobody can find out what others have asked.
"""

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from loire.base.config import EngineConfig
from loire.base.errors import LoireError
from loire.base.outputs import RequestOutput
from loire.engine.frontend import Frontend
from loire.engine.requests import Submission
from loire.server.access.caller import Caller
from loire.server.observe.request_watch import Observer
from loire.server.serving.request_client import RequestClient
from loire.server.web.call import Call
from loire.server.web.errors import ApiError


def tenant_salt(tenant: str, cache_salt: str) -> str:
    """The prefix cache's salt: of the tenant, and within it of the requests with this cache_salt.

    Without keys there are no tenants, and the request's own salt is all there is.
    """
    if not tenant:
        return cache_salt
    return hashlib.sha256(json.dumps([tenant, cache_salt]).encode()).hexdigest()


class TenantClient:
    """A RequestClient whose requests are all made on behalf of one caller."""

    def __init__(
        self, client: RequestClient, caller: Caller, observer: Observer, call: Call
    ) -> None:
        self._client = client
        self._caller = caller
        self._observer = observer
        self._call = call

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self._client.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._client.frontend

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return self._client.next_id()

    def admit(self, submissions: Sequence[Submission]) -> None:
        """Take the prompts' tokens from what the tenant may use.

        Raises ApiError: 429 if they are more than it has left, 403 if they would go before those
        of other tenants.
        """
        hasty = any(submission.request.priority < 0 for submission in submissions)
        if hasty and self._caller.tenant and not self._caller.admin:
            raise ApiError(
                403,
                "a priority below 0 goes before the requests of all tenants, and needs an admin "
                "key: leave it out, or ask for 0 or more",
                param="priority",
                code="admin_key_needed",
            )
        num_tokens = sum(len(submission.request.prompt_token_ids) for submission in submissions)
        self._caller.meter.take_prompt(num_tokens)

    async def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a request under its tenant's salt and at its expense; outputs hold what is new."""
        request = submission.request
        salt = tenant_salt(self._caller.tenant, request.cache_salt)
        least = self._caller.least_priority
        priority = request.priority if least is None else max(request.priority, least)
        tenant = self._caller.tenant
        request = replace(request, cache_salt=salt, priority=priority, tenant=tenant)
        salted = replace(submission, request=request)
        outputs = cast("AsyncGenerator[RequestOutput, None]", self._client.stream(salted))
        watch = self._observer.watch(salted, self._call)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    watch.see(output)
                    num_tokens = sum(len(delta.token_ids) for delta in output.outputs)
                    self._caller.meter.take_output(num_tokens)
                    yield output
        except LoireError as error:
            watch.fail(error)
            raise
        finally:
            watch.end()
