"""The client's side of one model: text in, token ids out. Never imports torch."""

from collections.abc import Mapping, Sequence

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.checkpoint.checkpoint import Checkpoint
from loire.engine.requests import RequestBuilder, Submission
from loire.text.chat_template import ChatTemplate
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

Message = Mapping[str, object]
"""A chat message: {"role": ..., "content": ...}."""


class Frontend:
    """Tokenizer, chat template and request checks of one model."""

    def __init__(self, checkpoint: Checkpoint, max_model_len: int, seed: int | None = None) -> None:
        self.tokenizer: Tokenizer = checkpoint_tokenizer(checkpoint)
        self.max_model_len = max_model_len
        self._builder = RequestBuilder(self.tokenizer, max_model_len, seed)
        self._template: ChatTemplate | None = None
        if checkpoint.chat_template is not None:
            self._template = ChatTemplate(checkpoint.chat_template, self.tokenizer.template_tokens)

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
        cache_salt: str = "",
    ) -> Submission:
        """A request from plain text, or from token ids as they are."""
        return self._builder.build(request_id, prompt, params, cache_salt=cache_salt)

    def chat(
        self,
        request_id: str,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        cache_salt: str = "",
    ) -> Submission:
        """A request from a conversation, through the model's chat template."""
        if self._template is None:
            raise RequestError(
                "this model has no chat template: send a plain prompt instead", param="messages"
            )
        text = self._template.render(messages, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return self._builder.build(
            request_id, text, params, cache_salt=cache_salt, add_special_tokens=False
        )
