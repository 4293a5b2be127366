"""A stand-in for the racing feed: what it says of a New Zealand day, the same at every call.

Its third meeting is raced overnight, so that on the nights the clocks change somebody is racing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from random import Random
from typing import Any, TypeAlias

import pytz

AUCKLAND = pytz.timezone("Pacific/Auckland")
SOURCE = "replay"

#: The feed looks at the market this many minutes before the start: often at the end, first a day ahead.
LOOKS = (1440, 240, 60, 30, 15, 10, 5, 2, 1, 0)

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Venue:
    name: str
    country: str
    category: str
    surface: str
    direction: str
    first_race: time
    minutes_between: int


VENUES = (
    Venue("Ellerslie", "NZL", "thoroughbred", "turf", "right", time(11, 40), 35),
    Venue("Addington", "NZL", "harness", "all weather", "right", time(17, 15), 28),
    Venue("Turffontein", "ZAF", "thoroughbred", "turf", "right", time(1, 35), 30),
)
RACES = 5
FIRST_NAMES = ("Southern", "Midnight", "Golden", "Te Awa", "Silver", "Kiwi", "Moana", "Royal")
LAST_NAMES = ("Dancer", "Spirit", "Rata", "Express", "Cloud", "Legend", "Tui", "Storm")
PEOPLE = ("A Collett", "J Riddell", "M McNab", "O Bosson", "B Orange", "S Ottley", "G Lerena", "R Fourie")


@dataclass(frozen=True)
class RaceCard:
    """All that the feed says of a race: a row of each kind, ready to be written."""

    race: Row
    entrants: list[Row]
    odds: list[Row]
    money_flow: list[Row]
    results: list[Row]

    @property
    def rows(self) -> int:
        return 1 + sum(map(len, (self.entrants, self.odds, self.money_flow, self.results)))


@dataclass(frozen=True)
class MeetingCard:
    meeting: Row
    races: list[RaceCard]


def days_from(first: date, count: int) -> list[date]:
    return [first + timedelta(days=number) for number in range(count)]


def meetings_on(day: date) -> Iterator[MeetingCard]:
    """Yield the meetings of a New Zealand day."""
    for number, venue in enumerate(VENUES, start=1):
        # 22841 is the first meeting of the 2284th day since 2020; its third race is 2284103.
        meeting_id = (day - date(2020, 1, 1)).days * 10 + number
        chance = Random(meeting_id)
        meeting = {
            "id": meeting_id,
            "name": venue.name,
            "meeting_date": day,
            "country": venue.country,
            "category": venue.category,
            "track_condition": chance.choice(["firm 2", "good 3", "good 4", "soft 5", "heavy 8"]),
            "track_surface": venue.surface,
            "track_direction": venue.direction,
            "rail_position": chance.choice(["true", "out 3 m", "out 6 m"]),
            "weather": chance.choice(["fine", "overcast", "showers"]),
            "status": "completed",
            "first_race_time_nz": venue.first_race,
            "race_count": RACES,
            "data_source": SOURCE,
        }
        first_start = AUCKLAND.localize(datetime.combine(day, venue.first_race)).astimezone(pytz.utc)
        gap = timedelta(minutes=venue.minutes_between)
        races = [_race(meeting, n, first_start + (n - 1) * gap, chance) for n in range(1, RACES + 1)]
        yield MeetingCard(meeting, races)


def _race(meeting: Row, number: int, start: datetime, chance: Random) -> RaceCard:
    race_id = meeting["id"] * 100 + number
    printed = start.astimezone(AUCKLAND)
    turnover = chance.uniform(8_000, 60_000)
    race = {
        "id": race_id,
        "meeting_id": meeting["id"],
        "race_number": number,
        "name": f"{meeting['name']} Race {number}",
        "start_time": start,
        "race_date_nz": printed.date(),
        "start_time_nz": printed.time(),
        "status": "final",
        "actual_start": start + timedelta(seconds=chance.randrange(20, 150)),
        "results_available": True,
        "win_pool": round(turnover, 2),
        "place_pool": round(turnover * 0.6, 2),
        "quinella_pool": round(turnover * 0.4, 2),
        "trifecta_pool": round(turnover * 0.5, 2),
        "first4_pool": round(turnover * 0.3, 2),
        "race_class": chance.choice(["Maiden", "Rating 65", "Rating 75", "Open"]),
        "distance_m": chance.choice([1200, 1400, 1600, 1980, 2100, 2600]),
        "prize_money": chance.randrange(15, 80) * 1000,
        "data_source": SOURCE,
    }
    harness = meeting["category"] == "harness"
    entrants = [_entrant(race_id, runner, harness, chance) for runner in range(1, chance.randint(8, 12) + 1)]
    running = [entrant for entrant in entrants if not entrant["scratched"]]
    odds, money_flow = _market(running, start, turnover, chance)
    favourites = sorted(running, key=lambda entrant: float(entrant["fixed_win_odds"]))
    placings = {str(place): e["runner_number"] for place, e in enumerate(favourites[:4], start=1)}
    results = [
        {
            "race_date_nz": race["race_date_nz"],
            "race_id": race_id,
            "status": status,
            "published_at": start + timedelta(minutes=minutes),
            "placings": placings,
        }
        for status, minutes in (("interim", 4), ("final", 11))
    ]
    return RaceCard(race, entrants, odds, money_flow, results)


def _entrant(race_id: int, runner: int, harness: bool, chance: Random) -> Row:
    person = chance.choice(PEOPLE)
    return {
        "id": race_id * 100 + runner,
        "race_id": race_id,
        "runner_number": runner,
        "name": f"{chance.choice(FIRST_NAMES)} {chance.choice(LAST_NAMES)}",
        "barrier": runner,
        "weight_kg": None if harness else chance.randrange(104, 120) / 2,
        "jockey": None if harness else person,
        "driver": person if harness else None,
        "form": "".join(chance.choices("123456789x", k=5)),
        "scratched": runner > 4 and chance.random() < 0.1,
        "fixed_win_odds": None,
        "fixed_place_odds": None,
        "pool_win_odds": None,
        "pool_place_odds": None,
        "hold_percentage": None,
        "bet_percentage": None,
        "data_source": SOURCE,
    }


def _market(
    running: list[Row], start: datetime, turnover: float, chance: Random
) -> tuple[list[Row], list[Row]]:
    """Let the market drift from its opening to the start; the entrants keep the last word."""
    odds: list[Row] = []
    money_flow: list[Row] = []
    strength = [chance.lognormvariate(0, 0.8) for _ in running]
    for minutes in LOOKS:
        moment = start - timedelta(minutes=minutes)
        strength = [value * chance.lognormvariate(0, 0.05) for value in strength]
        pool = turnover / (1 + minutes / 10)
        for entrant, value in zip(running, strength, strict=True):
            share = value / sum(strength)
            win = max(1.04, 0.85 / share)
            prices = {
                "fixed_win_odds": round(win, 2),
                "fixed_place_odds": round(1 + (win - 1) / 4, 2),
                "pool_win_odds": round(win * chance.uniform(0.92, 1.08), 2),
                "pool_place_odds": round(1 + (win - 1) / 4 * chance.uniform(0.9, 1.1), 2),
            }
            shares = {
                "hold_percentage": round(share * 100, 2),
                "bet_percentage": round(share * chance.uniform(80, 120), 2),
            }
            entrant.update(prices | shares)
            key = {"event_timestamp": moment, "entrant_id": entrant["id"]}
            for name, price in prices.items():
                odds.append(key | {"odds_type": name.removesuffix("_odds"), "odds": price})
            pools = {"win_pool": round(pool * share, 2), "place_pool": round(pool * share * 0.6, 2)}
            money_flow.append(key | shares | pools)
    return odds, money_flow
