"""Every recogniser that ships."""

from policy.recognisers.contacts import EMAILS, PHONE
from policy.recognisers.national_ids_europe import EUROPE
from policy.recognisers.national_ids_world import WORLD
from policy.recognisers.networks import IPV4, IPV6
from policy.recognisers.numbers import CARD, IBAN, US_SSN
from policy.recognisers.recogniser import Recogniser
from policy.recognisers.secrets import SECRETS

RECOGNISERS: tuple[Recogniser, ...] = (*EMAILS, PHONE, CARD, IBAN, US_SSN, *EUROPE, *WORLD, IPV4, IPV6, *SECRETS)
