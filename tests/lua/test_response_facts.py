"""What is lifted out of a response, and what a model or a prompt cannot make of it."""

import json

import pytest

USAGE = '{"prompt_tokens": 19, "completion_tokens": 10}'
FORGED = '{"prompt_tokens":0,"completion_tokens":0}'
SSE = "text/event-stream; charset=utf-8"


def by_byte(body):
    return [body[i : i + 1] for i in range(len(body))]


def lift(lua_filter, body, content_type="application/json", **kwargs):
    """The facts of this body, which are the same however it is cut."""
    raw = body.encode() if isinstance(body, str) else body
    facts = lua_filter.response([raw], content_type, **kwargs)
    assert facts == lua_filter.response(by_byte(raw), content_type, **kwargs)
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in facts.items()}


def events(*data):
    return "".join(f"data: {item}\n\n" for item in data)


class TestJson:
    def test_root_level_facts_are_lifted_as_raw_text(self, lua_filter):
        body = f'{{"model" : "gpt-4o\\u002d","usage" :\n{USAGE},"service_tier":"flex"}}'
        assert lift(lua_filter, body) == {
            "model": '"gpt-4o\\u002d"',
            "usage": USAGE,
            "service_tier": '"flex"',
            "bytes": len(body),
            "complete": True,
        }

    def test_a_value_that_is_not_ascii_is_not_reported(self, lua_filter):
        body = b'{"model": "g\xffpt", "usage": {"total_tokens": 3}}'

        facts = lua_filter.response([body])

        assert facts["unreadable"] is True
        assert facts["model"] == b""
        assert facts["usage"] == b'{"total_tokens": 3}'

    def test_a_last_usage_that_is_not_ascii_leaves_no_earlier_one_behind(self, lua_filter):
        body = (
            events('{"usage": {"total_tokens": 3}}').encode() + b'data: {"usage": {"\xff": 9}}\n\n'
        )

        assert lua_filter.response([body], SSE)["usage"] == b""

    def test_what_cohere_bills_for_an_embedding_is_lifted_as_its_usage(self, lua_filter):
        inner = f'"meta":{{"billed_units":{FORGED}}},"billed_units":{FORGED}'
        meta = f'"meta":{{"x":{{{inner}}},"billed_units":{USAGE}}}'
        body = f'{{"embeddings":{{{inner}}},{meta},"y":[{{{inner}}}]}}'
        assert lift(lua_filter, body)["usage"] == USAGE
        assert "usage" not in lift(lua_filter, events(body), SSE)

    def test_what_vertex_counts_of_a_text_is_lifted_as_its_usage(self, lua_filter):
        inner = f'"statistics":{FORGED},"usage":{FORGED},"embeddings":{{"statistics":{FORGED}}}'
        one = f'{{{inner},"embeddings":{{"x":{{{inner}}},"statistics":{USAGE},"values":[0.5]}}}}'
        body = f'{{{inner},"x":[{{{inner}}}],"predictions":[{one}],"y":{{"predictions":[{one}]}}}}'
        assert lift(lua_filter, body.replace(f',"usage":{FORGED}', ""))["usage"] == USAGE
        for other in (f'{{"predictions":[[{one}]]}}', f'{{"predictions":{one}}}', f"[{one}]"):
            assert "usage" not in lift(lua_filter, other.replace(f',"usage":{FORGED}', ""))
        assert "usage" not in lift(lua_filter, events(f'{{"predictions":[{one}]}}'), SSE)

    def test_gemini_facts_are_lifted_under_the_same_names(self, lua_filter):
        body = f'{{"candidates":[],"usageMetadata":{USAGE},"modelVersion":"gemini-2.5"}}'
        facts = lift(lua_filter, body, "application/json; charset=UTF-8")
        assert facts["usage"] == USAGE
        assert facts["model"] == '"gemini-2.5"'

    def test_a_gemini_list_of_objects_is_a_list_of_roots(self, lua_filter):
        body = (
            f'[{{"usageMetadata":{FORGED},"modelVersion":"a"}}\n,\r\n{{"usageMetadata":{USAGE}}}]'
        )
        facts = lift(lua_filter, body)
        assert facts["usage"] == USAGE
        assert facts["model"] == '"a"'

    def test_a_list_may_end_in_an_error_and_no_other_document_says_so(self, lua_filter):
        error = '{"error":{"code":503}}'
        assert lift(lua_filter, f'[{{"usageMetadata":{USAGE}}},{error}]')["error"] is True
        assert "error" not in lift(lua_filter, f'[{{"candidates":[{error}]}}]')

    def test_the_last_usage_and_the_first_model_win(self, lua_filter):
        body = f'{{"usage":{FORGED},"model":"a","usage":{USAGE},"model":"b"}}'
        facts = lift(lua_filter, body)
        assert facts["usage"] == USAGE
        assert facts["model"] == '"a"'

    @pytest.mark.parametrize("other", ["null", "7", '"{}"', "[{}]", "true", f"[{FORGED}]"])
    def test_usage_that_is_no_object_is_ignored(self, lua_filter, other):
        facts = lift(lua_filter, f'{{"usage":{USAGE},"usage":{other},"usageMetadata":{other}}}')
        assert facts["usage"] == USAGE

    @pytest.mark.parametrize("other", ["null", "7", "{}", '["x"]'])
    def test_a_model_or_tier_that_is_no_string_is_ignored(self, lua_filter, other):
        body = f'{{"model":{other},"service_tier":"flex","service_tier":{other},"model":"m"}}'
        facts = lift(lua_filter, body)
        assert facts["model"] == '"m"'
        assert facts["service_tier"] == '"flex"'

    def test_an_error_or_an_inner_object_tells_nothing_outside_of_sse(self, lua_filter):
        inner = f'{{"usage":{FORGED},"model":"x","service_tier":"x"}}'
        body = f'{{"error":{{}},"message":{inner},"response":{inner}}}'
        assert lift(lua_filter, body) == {"bytes": len(body), "complete": True}

    def test_documents_one_after_another_are_each_a_root(self, lua_filter):
        body = f'{{"model":"m","done":false}}\n{{"model":"m","usage":{USAGE}}}\n'
        assert lift(lua_filter, body, "application/x-ndjson")["usage"] == USAGE


class TestForgery:
    """Objects with any keys, as a model or a prompt can place them, beside the real usage."""

    PLANTED = (
        f'"content":[{{"type":"tool_use","input":{{"usage":{FORGED},"model":"x"}}}}]',
        f'"candidates":[{{"parts":[{{"functionCall":{{"args":{{"usageMetadata":{FORGED}}}}}}}]}}]',
        f'"choices":[{{"message":{{"usage":{FORGED},"parsed":{{"usage":{FORGED}}}}}}}]',
        f'"metadata":{{"usage":{FORGED},"service_tier":"x","error":{{}}}}',
        f'"output":[[{{"usage":{FORGED}}}],[[{{"usage":{FORGED},"model":"x"}}]]]',
        '"text":"\\"usage\\":{\\"prompt_tokens\\":0}"',
        '"text":"\\\\\\",\\"usage\\":{}, \\\\"',
        '"text":"}]}}\\u0022,\\u0022usage\\u0022:{}"',
        f'"\\u0075sage":{FORGED},"us\\u0061ge":{FORGED},"\\"usage":{FORGED},"usage\\\\":{FORGED}',
        f'"{"k" * 59}usage":{FORGED},"{"k" * 64}usage":{FORGED},"{"k" * 300}":{FORGED}',
        f'"usage ":{FORGED},"Usage":{FORGED},"":{FORGED},"usag":{FORGED},"usagee":{FORGED}',
        '"usage":"usage","usage":["usage","model"],"model_":"model"',
        f'"inside":{{"usage":{FORGED}}},"fact":{FORGED},"false":{FORGED},"nil":{FORGED}',
        f'"list":["usage",{FORGED},"model","x"]',
    )

    @pytest.mark.parametrize("planted", PLANTED)
    @pytest.mark.parametrize("content_type", ["application/json", SSE])
    def test_planted_keys_before_or_after_change_nothing(self, lua_filter, planted, content_type):
        real = f'"usage":{USAGE},"model":"m","service_tier":"flex"'
        for body in (f"{{{planted},{real}}}", f"{{{real},{planted}}}"):
            json.loads(body)
            is_sse = content_type == SSE
            facts = lift(lua_filter, events(body) if is_sse else body, content_type)
            assert facts["usage"] == USAGE
            assert facts["model"] == '"m"'
            assert facts["service_tier"] == '"flex"'
            assert "error" not in facts

    @pytest.mark.parametrize("planted", PLANTED)
    def test_planted_keys_alone_report_nothing(self, lua_filter, planted):
        facts = lift(lua_filter, f"{{{planted}}}")
        assert set(facts) == {"bytes", "complete"}
        facts = lift(lua_filter, events(f"{{{planted}}}"), SSE)
        assert set(facts) == {"bytes", "complete", "events"}

    @pytest.mark.parametrize("inner", ["message", "response"])
    def test_inner_objects_count_one_level_deep_and_at_the_root_only(self, lua_filter, inner):
        deep = f'{{"usage":{FORGED},"model":"x","service_tier":"x"}}'
        body = events(
            f'{{"delta":{{"{inner}":{deep}}},"{inner}":[{deep}],"x":{{"{inner}":{deep}}}}}',
            f'{{"{inner}":{{"metadata":{deep},"{inner}":{deep},"message":{deep},"response":{deep}}}}}',
            f'[{{"{inner}":{deep},"usage":{FORGED},"model":"x"}}]',
        )
        assert set(lift(lua_filter, body, SSE)) == {"bytes", "complete", "events"}

    def test_a_list_in_a_list_holds_no_root(self, lua_filter):
        body = f'[[{{"usage":{FORGED}}}],{{"a":[{{"usage":{FORGED}}}]}},"usage",{{"b":1}}]'
        assert set(lift(lua_filter, body)) == {"bytes", "complete"}


class TestServerSentEvents:
    def test_openai_chunks_give_the_usage_of_the_last(self, lua_filter):
        body = events(
            '{"id":"1","model":"gpt-4o","service_tier":"auto","choices":[{}],"usage":null}',
            '{"id":"1","model":"gpt-4o","service_tier":"flex","choices":[{}],"usage":null}',
            f'{{"id":"1","model":"gpt-4o","service_tier":"flex","choices":[],"usage":{USAGE}}}',
            "[DONE]",
        )
        assert lift(lua_filter, body, SSE) == {
            "model": '"gpt-4o"',
            "usage": USAGE,
            "service_tier": '"flex"',
            "events": 4,
            "bytes": len(body),
            "complete": True,
        }

    @pytest.mark.parametrize(
        ("line", "whole"),
        [
            ("data: [DONE]", True),
            ("event: message_stop", True),
            ("event: message_stopped", False),
            ("event: message_sto", False),
            ('data: {"type":"message_stop"}', False),
            (r'data: {"text":"\nevent: message_stop\n"}', False),
        ],
    )
    def test_a_stream_is_whole_at_its_own_last_event(self, lua_filter, line, whole):
        body = f'data: {{"usage":{USAGE}}}\n\n{line}\n'.encode()
        for pieces in ([body], by_byte(body)):
            facts = lua_filter.response(pieces, SSE, aborted=True)
            assert facts.get("complete", False) is whole

    def test_an_error_that_is_a_text_is_passed_over_to_its_end(self, lua_filter):
        text = f'{{"error":"a \\" }} {{","usage":{USAGE},"model":"m"}}'
        body = events(text, '{"error":{"a":"b"}}')
        facts = lift(lua_filter, body, SSE)
        assert (facts["error"], facts["usage"], facts["model"]) == (True, USAGE, '"m"')

    def test_a_model_without_a_name_is_none_yet(self, lua_filter):
        """As Azure begins each stream, with what its filter says of the prompt."""
        body = events(
            '{"id":"","model":"","prompt_filter_results":[],"choices":[]}',
            f'{{"model":"gpt-4o-2024-05-13","choices":[],"usage":{USAGE}}}',
        )
        assert lift(lua_filter, body, SSE)["model"] == '"gpt-4o-2024-05-13"'

    def test_anthropic_events_give_both_ends_of_usage(self, lua_filter):
        start, other = '{"input_tokens":5,"output_tokens":1}', '{"input_tokens":0}'
        body = (
            "event: message_start\n"
            f'data: {{"type":"message_start","message":{{"model":"claude","usage":{start}}}}}\n\n'
            'event: ping\ndata: {"type":"ping"}\n\n'
            f'event: message_start\ndata: {{"message":{{"usage":{other},"service_tier":"x"}}}}\n\n'
            f'event: message_delta\ndata: {{"type":"message_delta","usage":{FORGED}}}\n\n'
            f'event: message_delta\ndata: {{"type":"message_delta","usage":{USAGE}}}\n\n'
        )
        facts = lift(lua_filter, body, SSE)
        assert facts["usage_start"] == start
        assert facts["usage"] == USAGE
        assert facts["model"] == '"claude"'
        assert facts["events"] == 5
        assert "service_tier" not in facts

    def test_openai_responses_give_the_usage_of_the_completed_response(self, lua_filter):
        echo = f'"metadata":{{"usage":{FORGED}}},"instructions":"\\"usage\\":{{}}"'
        body = events(
            f'{{"type":"response.created","response":{{"model":"gpt-5",{echo},"usage":null}}}}',
            '{"type":"response.output_text.delta","delta":"x"}',
            f'{{"type":"response.completed","response":{{{echo},"usage":{USAGE},'
            f'"service_tier":"default","error":null}}}}',
        )
        facts = lift(lua_filter, body, SSE)
        assert facts["usage"] == USAGE
        assert facts["model"] == '"gpt-5"'
        assert facts["service_tier"] == '"default"'
        assert "error" not in facts

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            ('{"type":"error","error":{"type":"overloaded_error"}}', True),
            ('{"error":{}}', True),
            (f'{{"error":{{"message":"{"x" * 70000}"}}}}', True),
            ('{"code":"The service is currently unavailable","error":"Timed out"}', True),
            (f'{{"error":"{"x" * 70000}"}}', True),
            ('{"error":"\\"{"}', True),
            ('{"error":null}', None),
            ('{"error":""}', None),
            ('{"error":[{}]}', None),
            ('{"response":{"error":{}}}', None),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_an_error_counts_as_an_object_or_a_text_at_the_root(self, lua_filter, data, error):
        facts = lift(lua_filter, events('{"a":1}', data), SSE)
        assert facts.get("error") is error
        assert "oversize" not in facts

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
    @pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["no BOM", "BOM"])
    @pytest.mark.parametrize("closing", ["", "{end}", "{end}{end}"])
    def test_line_ends_and_fields_are_those_of_the_standard(self, lua_filter, end, bom, closing):
        lines = [
            'data:{"model":"m",',
            ": a comment",
            "id: 1",
            "data",
            f'data:  "usage":{USAGE[:-1]}',
            "retry: 5",
            "data: }}",
            "",
            "",
            ":",
            "event: only a name",
            "",
            "dat: {}",
            "datax: {}",
            "Data: {}",
            " data: {}",
            "",
            'data:{"service_tier":"flex"}',
        ]
        body = bom + end.join(lines) + closing.format(end=end)
        facts = lift(lua_filter, body, SSE)
        assert facts["events"] == 2
        assert facts["model"] == '"m"'
        assert facts["usage"] == USAGE[:-1] + "\n}"
        assert facts["service_tier"] == '"flex"'

    def test_a_bom_counts_at_the_start_only(self, lua_filter):
        body = "\ufeffdata: {}\n\n\ufeffdata: {}\n\n"
        assert lift(lua_filter, body, SSE)["events"] == 1

    def test_a_last_line_of_four_bytes_is_an_event(self, lua_filter):
        assert lift(lua_filter, "data: 1\n\ndata", SSE)["events"] == 2

    @pytest.mark.parametrize(
        "broken",
        [
            "}}]]",
            "}{",
            '{"a":"',
            '{"usage":{"a',
            '{"message":{',
            '{"a":"\\',
            "[[{",
            '"usage',
            "{",
            "plain",
        ],
    )
    def test_broken_data_does_not_reach_the_next_event(self, lua_filter, broken):
        facts = lift(lua_filter, events(broken, f'{{"usage":{USAGE},"model":"m"}}'), SSE)
        assert facts["usage"] == USAGE
        assert facts["model"] == '"m"'
        assert "usage_start" not in facts

    def test_comments_and_other_fields_reach_no_document(self, lua_filter):
        other = f'{{"usage":{FORGED},"model":"x"}}'
        body = f'data: {{\n: {other}\nevent: {other}\n{other}\ndata: "usage":{USAGE}}}\n\n'
        facts = lift(lua_filter, body, SSE)
        assert facts["usage"] == USAGE
        assert "model" not in facts

    def test_an_event_of_more_than_a_megabyte_is_read(self, lua_filter):
        text = json.dumps('say "hi"\\ ' * 200_000)
        body = f'data: {{"response":{{"output":{text},"usage":{USAGE}}}}}\n\n'.encode()
        pieces = [body[i : i + 16384] for i in range(0, len(body), 16384)]
        assert lua_filter.response(pieces, SSE)["usage"] == USAGE.encode()


class TestReporting:
    def test_an_abort_keeps_what_was_complete(self, lua_filter):
        pieces = [events(f'{{"model":"m","usage":{USAGE}}}', '{"usage":{"a":').encode()]
        assert lua_filter.response(pieces, SSE, aborted=True) == {
            "model": b'"m"',
            "usage": USAGE.encode(),
        }

    def test_a_fact_is_written_as_soon_as_its_last_byte_is_here(self, lua_filter):
        body = f'{{"usage":{USAGE}'.encode()
        assert lua_filter.response(by_byte(body[:-1]), aborted=True) == {}
        assert lua_filter.response(by_byte(body), aborted=True) == {"usage": USAGE.encode()}

    def test_equal_values_and_mere_bytes_are_not_written_again(self, lua_filter):
        body = events(*['{"model":"m","service_tier":"flex","usage":null}'] * 100).encode()
        lua_filter.response(by_byte(body), SSE)
        assert lua_filter.writes == len({"model", "service_tier", "events", "bytes", "complete"})

    @pytest.mark.parametrize(
        ("key", "most"), [("usage", 65_536), ("model", 256), ("service_tier", 256)]
    )
    def test_usage_above_64_kib_and_names_above_256_bytes_are_not_reported_but_told(
        self, lua_filter, key, most
    ):
        first, last = ('{"":"', '"}') if key == "usage" else ('"', '"')
        for length, oversize in ((most, None), (most + 1, True)):
            value = first + "x" * (length - len(first) - len(last)) + last
            facts = lift(lua_filter, f'{{"{key}":{value}}}')
            assert facts.get("oversize") is oversize
            assert facts[key] == ("" if oversize else value)

    def test_an_empty_piece_changes_nothing_even_amid_an_escape_or_a_line_end(self, lua_filter):
        body = b'{"a":"\\"","usage":{"b":"\\\\"}}'
        pieces = [piece for byte in by_byte(body) for piece in (byte, b"")]
        assert lua_filter.response(pieces)["usage"] == b'{"b":"\\\\"}'
        pieces = [b"data: {\r", b"", b"\n", b"", b"data: ", b"", b'"usage":{}}\r', b"", b"\n\r\n"]
        facts = lua_filter.response(pieces, SSE)
        assert facts["usage"] == b"{}"
        assert facts["events"] == 1

    def test_an_empty_body_is_complete(self, lua_filter):
        assert lua_filter.response([]) == {"bytes": 0, "complete": True}
        assert lua_filter.response([b""], SSE) == {"bytes": 0, "complete": True, "events": 0}

    @pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
    def test_a_compressed_body_is_not_read_and_says_so(self, lua_filter, encoding):
        facts = lua_filter.response([b"{}"], encoding=encoding)
        assert facts == {"content_encoding": encoding.encode()}

    def test_identity_is_no_compression(self, lua_filter):
        assert lua_filter.response([b"{}"], encoding="Identity")["complete"] is True

    @pytest.mark.parametrize("content_type", ["text/plain", "text/html; x=json", None])
    def test_a_body_of_another_type_is_not_read_and_says_so(self, lua_filter, content_type):
        facts = lua_filter.response([b"{}"], content_type)
        assert facts == {"content_type": (content_type or "").encode()}

    @pytest.mark.parametrize(
        "content_type", ["Application/JSON", "application/vnd.api+json; charset=utf-8"]
    )
    def test_json_is_known_by_any_of_its_names(self, lua_filter, content_type):
        assert lua_filter.response([b"{}"], content_type)["complete"] is True

    @pytest.mark.parametrize("call", [{}, {"size": 3}], ids=["no metadata", "no reservation"])
    def test_the_answer_to_a_call_that_is_not_metered_is_let_alone(self, lua_filter, call):
        body = f'{{"usage":{USAGE}}}'.encode()
        assert lua_filter.response([body], call=call) == {}


COUNTS = {"x-amzn-bedrock-input-token-count": "12", "x-amzn-bedrock-output-token-count": "0"}


def test_what_bedrock_has_counted_is_read_from_its_headers(lua_filter):
    facts = lua_filter.response([b'{"generation":"hi"}'], headers=COUNTS)
    assert facts["metrics"] == b'{"inputTokenCount":12,"outputTokenCount":0}'


@pytest.mark.parametrize("odd", ["", "-1", "1,2", "1.5", "0x1", '1,"a":2', "9" * 16])
def test_a_count_that_is_no_whole_number_is_none(lua_filter, odd):
    headers = {**COUNTS, "x-amzn-bedrock-input-token-count": odd}
    facts = lua_filter.response([b"{}"], headers=headers)
    assert facts["metrics"] == b'{"outputTokenCount":0}'


def test_an_answer_without_counts_has_no_metrics(lua_filter):
    assert "metrics" not in lua_filter.response([b"{}"])
