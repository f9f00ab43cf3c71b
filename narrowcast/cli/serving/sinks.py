"""Where results of ``narrowcast serve`` go besides back to the client."""

from __future__ import annotations

import argparse
from pathlib import Path

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.sinks import Sink
from narrowcast.transport.sinks.secrets import read_secret


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("results elsewhere (docs/results-schema.md)")
    group.add_argument("--webhook", metavar="URL", help="POST results and drift events there, as JSON, over HTTPS")
    group.add_argument(
        "--webhook-secret", type=Path, metavar="FILE", help="sign them (HMAC-SHA256) with what is in this file"
    )
    group.add_argument("--webhook-ca", type=Path, metavar="FILE", help="trust these CA certificates, not the system's")
    group.add_argument(
        "--mqtt",
        metavar="HOST:PORT/TOPIC",
        help="publish them there, QoS 1, as TOPIC/MODEL/result and TOPIC/MODEL/drift",
    )
    group.add_argument("--mqtt-user", metavar="NAME", help="for the broker")
    group.add_argument("--mqtt-password", type=Path, metavar="FILE", help="a file with the user's password")
    group.add_argument("--mqtt-tls", action="store_true", help="encrypt, and trust the system's CA certificates")
    group.add_argument("--mqtt-ca", type=Path, metavar="FILE", help="encrypt, and trust these CA certificates")
    group.add_argument("--sink-raw", action="store_true", help="send the output tensors along, too")


def make_sinks(args: argparse.Namespace) -> list[Sink]:
    """The sinks that the options ask for.

    Raises:
        ConfigError: options that do not go together, no such URL, target or file.
        MissingDependencyError: MQTT without paho-mqtt.
    """
    for needed, options in (
        ("webhook", ("webhook_secret", "webhook_ca")),
        ("mqtt", ("mqtt_user", "mqtt_password", "mqtt_tls", "mqtt_ca")),
    ):
        given = [option for option in options if getattr(args, option)]
        if given and not getattr(args, needed):
            raise ConfigError(f"--{given[0].replace('_', '-')} goes with --{needed}, which is not given")
    sinks: list[Sink] = []
    if args.webhook:
        from narrowcast.transport.sinks.webhook import Webhook

        secret = read_secret(args.webhook_secret).encode() if args.webhook_secret else b""
        sinks.append(Webhook(args.webhook, secret=secret, ca=args.webhook_ca))
    if args.mqtt:
        from narrowcast.transport.sinks.mqtt import Mqtt, parse_target

        if args.mqtt_password and not args.mqtt_user:
            raise ConfigError("--mqtt-password goes with --mqtt-user, which is not given")
        sinks.append(
            Mqtt(
                parse_target(args.mqtt),
                username=args.mqtt_user,
                password=read_secret(args.mqtt_password) if args.mqtt_password else None,
                tls=args.mqtt_tls,
                ca=args.mqtt_ca,
            )
        )
    if args.sink_raw and not sinks:
        raise ConfigError("--sink-raw goes with --webhook or --mqtt, and neither is given")
    return sinks
