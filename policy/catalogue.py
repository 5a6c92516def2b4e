"""Every recogniser that ships."""

from policy.contacts import EMAILS, PHONE
from policy.national_ids_europe import EUROPE
from policy.national_ids_world import WORLD
from policy.networks import IPV4, IPV6
from policy.numbers import CARD, IBAN, US_SSN
from policy.recognisers import Recogniser
from policy.secrets import SECRETS

RECOGNISERS: tuple[Recogniser, ...] = (*EMAILS, PHONE, CARD, IBAN, US_SSN, *EUROPE, *WORLD, IPV4, IPV6, *SECRETS)
