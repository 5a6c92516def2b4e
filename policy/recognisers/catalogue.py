"""Every recogniser that ships."""

from headrace.policy.recognisers.contacts import EMAILS, PHONE
from headrace.policy.recognisers.national_ids_europe import EUROPE
from headrace.policy.recognisers.national_ids_world import WORLD
from headrace.policy.recognisers.networks import IPV4, IPV6
from headrace.policy.recognisers.numbers import CARD, IBAN, US_SSN
from headrace.policy.recognisers.recogniser import Recogniser
from headrace.policy.recognisers.secrets import SECRETS

RECOGNISERS: tuple[Recogniser, ...] = (*EMAILS, PHONE, CARD, IBAN, US_SSN, *EUROPE, *WORLD, IPV4, IPV6, *SECRETS)
