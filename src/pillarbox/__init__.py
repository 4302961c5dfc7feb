"""pillarbox: the SMTP and LMTP server for Python.

    server = SMTPServer(auth_optional=True, on_data=deliver)
    server.run(2525, "127.0.0.1")

The names below are the public ones; modules and names that are not here may change in any release.
"""

from pillarbox.counts import LimitCounts
from pillarbox.errors import ConfigurationError, ConnectionLost, HandshakeFailed, MessageTooLarge, Reject
from pillarbox.extension import Asked, Command, Extension, Parameter, Phase
from pillarbox.logs import log_fields
from pillarbox.net.bound import BoundSockets
from pillarbox.net.certificates import self_signed_certificate
from pillarbox.net.dns import DNSResolver, HostNames
from pillarbox.networks import Networks
from pillarbox.options import Options
from pillarbox.server import SMTPServer
from pillarbox.session import (
    RRVS,
    Address,
    DeliverBy,
    Envelope,
    MessageDSN,
    ProxyInfo,
    ProxyTLS,
    Recipient,
    RecipientDSN,
    Session,
    TLSInfo,
)
from pillarbox.smtp.conversation import Conversation
from pillarbox.smtp.reply import Reply
from pillarbox.smtp.sasl import AuthRequest, Exchange, InvalidCredential, Mechanism, ScramKeys
from pillarbox.smtp.sasl.saslprep import saslprep
from pillarbox.smtp.stream import MessageStream
from pillarbox.statistics import Durations, Statistics
from pillarbox.trace import received_header, return_path_header

__version__ = "0.1.0"

__all__ = [
    "RRVS",
    "Address",
    "Asked",
    "AuthRequest",
    "BoundSockets",
    "Command",
    "ConfigurationError",
    "ConnectionLost",
    "Conversation",
    "DNSResolver",
    "DeliverBy",
    "Durations",
    "Envelope",
    "Exchange",
    "Extension",
    "HandshakeFailed",
    "HostNames",
    "InvalidCredential",
    "LimitCounts",
    "Mechanism",
    "MessageDSN",
    "MessageStream",
    "MessageTooLarge",
    "Networks",
    "Options",
    "Parameter",
    "Phase",
    "ProxyInfo",
    "ProxyTLS",
    "Recipient",
    "RecipientDSN",
    "Reject",
    "Reply",
    "SMTPServer",
    "ScramKeys",
    "Session",
    "Statistics",
    "TLSInfo",
    "log_fields",
    "received_header",
    "return_path_header",
    "saslprep",
    "self_signed_certificate",
]
