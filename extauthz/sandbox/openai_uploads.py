"""OpenAI's endpoints that take a form: transcriptions, translations, edits of images."""

from email.message import Message
from email.parser import BytesFeedParser
from typing import Any

from extauthz.sandbox.openai_small import Images, Small
from extauthz.sandbox.prices import PriceTable, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import Call, Event, Refusal, dumps, pieces, text_tokens

_BY_SECONDS = frozenset(("whisper-1", "gpt-transcribe"))
_LONGEST_ANSWER = 2000
_PICTURE_TOKENS = 194
_TEXTS = frozenset(("text", "srt", "vtt"))


def parse_form(body: bytes, content_type: str) -> dict[str, Any]:
    """A form's fields as text and its files as lists of bytes; of a field, the last one counts.

    Read by Python's parser of mail, which knows nothing of what the product reads.
    """
    parser = BytesFeedParser()
    parser.feed(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    message = parser.close()
    parts = message.get_payload() if message.is_multipart() else []
    form: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, Message):
            continue
        name = str(part.get_param("name", "", header="content-disposition"))
        content = part.get_payload(decode=True)
        data = content if isinstance(content, bytes) else b""
        if part.get_filename() is None:
            form[name] = data.decode("utf-8", "replace")
        else:
            form.setdefault(name, []).append(data)
    if not form:
        raise Refusal(400, "Could not parse multipart form")
    return form


class Transcriptions(Small):
    """`/v1/audio/transcriptions`."""

    tells_usage = True

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Billed by the second, or by tokens, of which those of sound have a price of their own."""
        model, files = self.find_model(body, prices), body.get("file")
        if not isinstance(files, list):
            raise Refusal(400, "file: field required", param="file")
        size, given = sum(map(len, files)), script.input_tokens
        if model.name in _BY_SECONDS:
            usage = Usage(input=1 + size // 16_000 if given is None else given, output=0)
        else:
            usage = Usage(
                input=text_tokens(body["prompt"]) if body.get("prompt") else 0,
                media=1 + size // 1600 if given is None else given,
                output=min(script.output_tokens, _LONGEST_ANSWER),
            )
        is_text = body.get("response_format") in _TEXTS
        return self.call(
            {"user": script.agent},
            model,
            usage,
            # (whisper-1 ignores it)
            stream=body.get("stream") == "true" and model.name != "whisper-1",
            content_type="text/plain; charset=utf-8" if is_text else None,
        )

    def answer(self, call: Call, script: Script) -> str:
        """What was said."""
        if call.content_type is not None:
            return script.content
        said: dict[str, Any] = {"text": script.content}
        if self.tells_usage and script.ending != "no-usage":
            said["usage"] = _usage(call)
        return dumps(said)

    def events(self, call: Call, script: Script) -> list[Event]:
        """The same in pieces, then all of it with the usage; no `[DONE]`."""
        done: dict[str, Any] = {"type": "transcript.text.done", "text": script.content}
        if script.ending != "no-usage":
            done["usage"] = _usage(call)
        deltas = pieces(script.content, script.chunks)
        told = [{"type": "transcript.text.delta", "delta": piece} for piece in deltas]
        return [Event(dumps(one)) for one in (*told, done)]


class Translations(Transcriptions):
    """`/v1/audio/translations`, which tells no usage."""

    tells_usage = False


class ImageEdits(Images):
    """`/v1/images/edits`."""

    event = "image_edit"

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """As a picture that is made, and so many tokens for each that is sent."""
        files = sum(len(value) for value in body.values() if isinstance(value, list))
        if not files:
            raise Refusal(400, "image: field required", param="image")
        numbers = {"n": int(body.get("n") or 1), "stream": body.get("stream") == "true"}
        return super().parse(body | numbers | {"files": files}, prices, script)

    def picture_tokens(self, body: dict[str, Any]) -> int:
        """Of all pictures that were sent."""
        return _PICTURE_TOKENS * int(body["files"])


def _usage(call: Call) -> dict[str, Any]:
    usage = call.usage
    if call.model.name in _BY_SECONDS:
        return {"type": "duration", "seconds": usage.input}
    given = usage.input + usage.media
    return {
        "type": "tokens",
        "input_tokens": given,
        "input_token_details": {"text_tokens": usage.input, "audio_tokens": usage.media},
        "output_tokens": usage.output,
        "total_tokens": given + usage.output,
    }
