"""What is relayed, and what is answered with an error."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from websockets.frames import Frame, Opcode

from tests.integration.harness import Harness, upgrade


@pytest.mark.parametrize("kind", ["offer", "answer", "ice-candidate"])
def test_a_message_reaches_the_named_peer_alone(harness: Harness, kind: str) -> None:
    sender, target, bystander = (harness.join("room") for _ in range(3))
    for peer in (sender, target, bystander):
        peer.heard()
    sender.say({"type": kind, "to": target.id, "payload": {"sdp": "v=0"}, "msgId": "m1"})
    assert target.heard() == [{"type": kind, "from": sender.id, "payload": {"sdp": "v=0"}, "msgId": "m1"}]
    assert sender.heard() == bystander.heard() == []


def test_a_peer_may_send_to_itself(harness: Harness) -> None:
    peer = harness.join("room")
    peer.offer(peer, payload=1)
    assert peer.heard() == [{"type": "offer", "from": peer.id, "payload": 1}]


@pytest.mark.parametrize(
    "payload",
    [
        "123456789012345678901234567890",
        "1e400",
        '{"b" : 1,\t"a": [ 2 ]}',
        r'"\u0041\/\ud83d\ude00"',
        r'{"lone": "\ud800", "twice": "\\ud800"}',
        r'"\udc00"',
        "null",
        "false",
        '""',
        "-0.0",
        '{"a":1,"a":2}',
        '"grüße 👋"',
        "9" * 5000,
    ],
)
def test_a_payload_arrives_as_the_bytes_that_were_sent(harness: Harness, payload: str) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say(f'{{"type":"offer","to":"{target.id}","payload": {payload} }}')
    assert target.texts == [f'{{"type":"offer","from":"{sender.id}","payload":{payload}}}']


def test_an_absent_payload_stays_absent(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say({"type": "answer", "to": target.id})
    assert target.heard() == [{"type": "answer", "from": sender.id}]


@pytest.mark.parametrize("msg_id", ["null", '""'])
def test_a_null_or_empty_msg_id_counts_as_absent(harness: Harness, msg_id: str) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    sender.say(f'{{"type":"answer","to":"{target.id}","msgId":{msg_id}}}')
    sender.say(f'{{"type":"answer","to":"nobody","msgId":{msg_id}}}')
    assert target.heard() == [{"type": "answer", "from": sender.id}]
    assert "msgId" not in sender.heard()[0]


def test_from_cannot_be_forged(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say(f'{{"from":"x","type":"offer","from":"y","to":"{target.id}","payload":1,"from":"z"}}')
    assert target.texts == [f'{{"type":"offer","from":"{sender.id}","payload":1}}']


def test_of_a_repeated_key_the_last_counts_and_it_is_relayed_once(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say(f'{{"type":"offer","payload":1,"to":"nobody","to":"{target.id}","payload":2}}')
    assert target.texts == [f'{{"type":"offer","from":"{sender.id}","payload":2}}']


def test_unknown_keys_are_not_relayed(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say({"type": "offer", "to": target.id, "extra": [1], "\ud800": 1})
    assert target.heard() == [{"type": "offer", "from": sender.id}]


def test_messages_arrive_in_the_order_sent(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.say_many([{"type": "ice-candidate", "to": target.id, "payload": n} for n in range(500)])
    assert [message["payload"] for message in target.heard()] == list(range(500))


@pytest.mark.parametrize("size", [65_536])
def test_a_message_of_64_kib_is_relayed(harness: Harness, size: int) -> None:
    sender, target = harness.join("room"), harness.join("room")
    frame = f'{{"type":"offer","to":"{target.id}","payload":""}}'
    sender.say(frame[:-2] + "x" * (size - len(frame)) + frame[-2:])
    assert len(target.heard()[0]["payload"]) == size - len(frame)


UNREADABLE = "the message must be one JSON object"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "invalid_message", UNREADABLE),
        ("nope", "invalid_message", UNREADABLE),
        ("[1]", "invalid_message", UNREADABLE),
        ('"offer"', "invalid_message", UNREADABLE),
        ("null", "invalid_message", UNREADABLE),
        ("{", "invalid_message", UNREADABLE),
        ("{}x", "invalid_message", UNREADABLE),
        ('{"a":1,}', "invalid_message", UNREADABLE),
        ('{"a" 1}', "invalid_message", UNREADABLE),
        ("{a:1}", "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":NaN}', "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":[Infinity]}', "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":-Infinity}', "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":"a\nb"}', "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":01}', "invalid_message", UNREADABLE),
        ("\ufeff{}", "invalid_message", UNREADABLE),
        ('{"type":"offer","to":"x","payload":' + "[" * 30_000 + "]" * 30_000 + "}", "invalid_message", "too deeply"),
        ('{"type":5}', "invalid_message", "type must be a string"),
        ('{"type":"offer","to":5}', "invalid_message", "to must be a string"),
        ('{"type":"offer","to":["x"]}', "invalid_message", "to must be a string"),
        ('{"type":"offer","to":"x","msgId":5}', "invalid_message", "msgId must be a string"),
        ('{"type":"nope","to":5}', "invalid_message", "to must be a string"),
        ("{}", "invalid_type", "offer, answer or ice-candidate"),
        ('{"type":null}', "invalid_type", "offer, answer or ice-candidate"),
        ('{"type":"Offer"}', "invalid_type", "offer, answer or ice-candidate"),
        ('{"type":"welcome"}', "invalid_type", "offer, answer or ice-candidate"),
        ('{"type":"offer"}', "missing_target", "to must name the peer"),
        ('{"type":"offer","to":null}', "missing_target", "to must name the peer"),
        ('{"type":"offer","to":""}', "missing_target", "to must name the peer"),
        ('{"type":"offer","to":"nobody"}', "target_not_found", "peer not found"),
        (r'{"type":"offer","to":"\ud800"}', "target_not_found", "peer not found"),
    ],
)
def test_the_first_check_that_fails_is_answered(harness: Harness, text: str, code: str, words: str) -> None:
    peer = harness.join("room")
    peer.say(text)
    [answer] = peer.heard()
    assert (answer["type"], answer["code"]) == ("error", code)
    assert words in answer["message"]
    peer.offer(peer, "still open")
    assert peer.heard()[0]["msgId"] == "still open"


@pytest.mark.parametrize(
    "text",
    [
        '{"type":5,"msgId":"m"}',
        '{"type":"nope","msgId":"m"}',
        '{"type":"offer","to":5,"msgId":"m"}',
        '{"type":"offer","msgId":"m"}',
        '{"type":"offer","to":"nobody","msgId":"m"}',
        r'{"type":"offer","to":"\ud800","msgId":"m"}',
        '{"type":"offer","to":"x","msgId":"m","payload":' + "[" * 64 + "]" * 64 + "}",
    ],
)
def test_an_error_repeats_a_readable_msg_id(harness: Harness, text: str) -> None:
    peer = harness.join("room")
    peer.say(text)
    assert peer.heard()[0]["msgId"] == "m"


def test_msg_ids_are_repeated_as_they_were_written(harness: Harness) -> None:
    peer = harness.join("room")
    peer.say(r'{"type":"offer","to":"nobody","msgId":"\"\ud800é\n"}')
    assert peer.texts[0].endswith(r',"msgId":"\"\ud800é\n"}')


def test_a_binary_message_is_invalid(harness: Harness) -> None:
    peer = harness.join("room")
    peer.say_frame(Frame(Opcode.BINARY, json.dumps({"type": "offer", "to": peer.id}).encode()))
    assert [answer["code"] for answer in peer.heard()] == ["invalid_message"]


def test_a_peer_of_another_topic_is_not_found(harness: Harness) -> None:
    peer, outsider = harness.join("room"), harness.join("elsewhere")
    peer.offer(outsider, "m")
    assert [answer["code"] for answer in peer.heard()] == ["target_not_found"]
    assert outsider.heard() == []


def test_a_peer_that_left_is_not_found(harness: Harness) -> None:
    peer, gone = harness.join("room"), harness.join("room")
    gone.leave()
    peer.heard()
    peer.offer(gone)
    assert [answer["code"] for answer in peer.heard()] == ["target_not_found"]


@pytest.mark.parametrize("filler", ["", '"[[{\\"[",', '"a[","b{","c]",'])
def test_a_payload_may_be_nested_63_deep_in_its_message(harness: Harness, filler: str) -> None:
    sender, target = harness.join("room"), harness.join("room")
    for depth, code in ((63, None), (64, "invalid_message")):
        payload = '{"a":[' * (depth // 2) + "[" * (depth % 2) + filler + "0" + "]" * (depth % 2) + "]}" * (depth // 2)
        sender.say(f'{{"type":"offer","to":"{target.id}","payload":{payload}}}')
        heard = (target if code is None else sender).heard()[-1]
        assert heard.get("code") == code


def test_arrays_beside_each_other_are_no_depth(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    payload = json.loads("[" + "[[{}]]," * 8000 + "0]")
    sender.offer(target, payload=payload)
    assert target.heard()[-1]["payload"] == payload


METADATA_FOR_NOBODY = [
    ('{"a":' * 65 + "1" + "}" * 65, "nested too deeply: at most 64"),
    ('{"a":' + "[" * 1900 + "]" * 1900 + "}", "nested too deeply: at most 64"),
    ('{"a":' + "9" * 101 + "}", "a number with more than 100 digits"),
    ('{"a":[-1,' + "1" * 4000 + "]}", "a number with more than 100 digits"),
    ('{"a":1.' + "1" * 101 + "}", "a number with more than 100 digits"),
]


@pytest.mark.parametrize(("text", "reason"), METADATA_FOR_NOBODY)
def test_metadata_that_a_client_could_not_read_is_refused(harness: Harness, text: str, reason: str) -> None:
    status, _, body = harness.request(upgrade(f"/ws/room?metadata={quote(text)}"))
    assert status == 400
    assert reason in body


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 64 + "1" + "}" * 64,
        '{"a":' + "9" * 100 + "}",
        '{"a":"' + "9" * 2000 + "[" * 2000 + '"}',
        '{"a":1e400,"b":"\\ud800","c":"\\\\ud800"}',
    ],
)
def test_metadata_that_every_client_can_read_is_shown_as_it_was_written(harness: Harness, text: str) -> None:
    observer = harness.join("room")
    observer.texts.clear()
    harness.request(upgrade(f"/ws/room?metadata={quote(text)}"))
    assert observer.texts[0].endswith(f',"metadata":{text}}}')
