"""The client's side of one model: text in, token ids out. Never imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.checkpoint import Checkpoint
from loire.engine.requests import COUNTED_WINDOWS, HERE, Origin, RequestBuilder, Submission
from loire.text.chat_template import ChatTemplate
from loire.text.control_tokens import ControlTokens
from loire.text.dialect import Dialect, read_dialect
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer
from loire.text.tools.definitions import Tool
from loire.text.tools.prompt import Ending, render

Message = Mapping[str, object]
"""A chat message: {"role": ..., "content": ...}."""


class Frontend:
    """Tokenizer, chat template and request checks of one model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_model_len: int,
        seed: int | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        allow_special_in_text: bool = False,
        system: str = "",
    ) -> None:
        """tokenizer: the checkpoint's, if it was made already.

        allow_special_in_text: control tokens written in messages count as such. system: a system
        message for conversations that begin without one.
        """
        self.tokenizer = tokenizer or checkpoint_tokenizer(checkpoint)
        self.max_model_len = max_model_len
        self._system = system
        num_tokens = checkpoint.description.vocab_size
        self.sampling_defaults = dict(checkpoint.sampling_defaults.values)
        self._builder = RequestBuilder(
            self.tokenizer, max_model_len, num_tokens, seed, self.sampling_defaults
        )
        self._template: ChatTemplate | None = None
        self._dialect: Dialect | None = None
        self._control: ControlTokens | None = None
        self._control_of_model: ControlTokens | None = None
        if checkpoint.chat_template is not None:
            self._template = ChatTemplate(checkpoint.chat_template, self.tokenizer.template_tokens)
            self._dialect = read_dialect(self._template.source, self._template.variables)
            if not allow_special_in_text:
                control = self.tokenizer.control_tokens(self._template.source)
                self._control = ControlTokens(control)
                # What the model itself writes, and clients send back.
                self._control_of_model = ControlTokens(control - {*self._dialect.markers})

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self._template is not None

    def prompt(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        origin: Origin = HERE,
    ) -> Submission:
        """A request from plain text, or from token ids as they are."""
        return self._builder.build(request_id, prompt, params, origin=origin)

    def rendered(
        self,
        request_id: str,
        prompt: str,
        params: SamplingParams,
        *,
        origin: Origin = HERE,
        shown_ids: frozenset[int] = frozenset(),
    ) -> Submission:
        """A request from a prompt that a chat template wrote, special tokens included."""
        return self._builder.build(
            request_id,
            prompt,
            params,
            origin=origin,
            add_special_tokens=False,
            shown_ids=shown_ids,
        )

    def check_token_ids(self, param: str, token_ids: Sequence[int]) -> None:
        """Raise RequestError, naming the parameter, if an id is not in the vocabulary."""
        self._builder.check_token_ids(param, token_ids)

    def check_characters(self, num_characters: int, num_windows: int = 1) -> None:
        """Raise PromptTooLongError if a text cannot fit into so many windows, whatever its
        tokens."""
        self._builder.check_characters(num_characters, num_windows)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text that is not to be computed. Raises PromptTooLongError if it cannot
        fit, whatever its tokens, or if they are far more than fit."""
        return self._builder.token_ids(text, add_special_tokens, COUNTED_WINDOWS)

    def check_form(self, form: StructuredOutputs, origin: Origin = HERE) -> None:
        """Raise RequestError if a constraint is wrong, too large, or not supported.

        Raises BusyError if too many of the same tenant's wait to be checked.
        """
        self._builder.check_form(form, origin)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
        ending: Ending = "answer begins",
    ) -> str:
        """The prompt of a conversation in which tools may be offered.

        variables: what else the template reads. Control tokens in any of it are marked, to be
        encoded as text. Raises RequestError if the template refuses.
        """
        if self._system and (not messages or messages[0].get("role") != "system"):
            messages = [{"role": "system", "content": self._system}, *messages]
        if self._control is not None:
            messages = [self._hidden(message) for message in messages]
            tools = [
                replace(
                    tool,
                    description=self._control.hide(tool.description),
                    parameters=self._control.hide(tool.parameters),
                )
                for tool in tools
            ]
            variables = self._control.hide(variables or {})
        return render(self.template, self.dialect, messages, tools, variables, ending)

    def _hidden(self, message: Message) -> Message:
        from_model = message.get("role") == "assistant"
        control = self._control_of_model if from_model else self._control
        assert control is not None
        hidden: Message = control.hide(message)
        return hidden

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises RequestError if it has none."""
        if self._template is None:
            raise RequestError(
                "this model has no chat template: send a plain prompt instead", param="messages"
            )
        return self._template

    @property
    def dialect(self) -> Dialect:
        """How the model calls tools and thinks. Raises RequestError without a chat template."""
        if self._dialect is None:
            raise RequestError(
                "this model has no chat template: send a plain prompt instead", param="messages"
            )
        return self._dialect
