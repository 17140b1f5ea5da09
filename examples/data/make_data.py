"""Writes the demo's data: small records and pictures of our own, the same bytes at every run."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 200),
    "yellow": (230, 200, 40),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
ANIMALS = ("cat", "owl", "horse", "spider", "ant", "hen", "goat", "crab")
LEGS = {"cat": 4, "owl": 2, "horse": 4, "spider": 8, "ant": 6, "hen": 2, "goat": 4, "crab": 10}
UNITS = {"metres": ("centimetres", 100), "hours": ("minutes", 60), "weeks": ("days", 7)}
WORDS = ("river", "lamp", "window", "garden", "paper", "stone", "letter", "cloud", "bridge", "song")


def arithmetic(rng: random.Random) -> dict[str, str]:
    """Add or take away."""
    a, b = rng.randrange(2, 60), rng.randrange(2, 40)
    if rng.random() < 0.5:
        return record("Add the two numbers.", f"{a} and {b}", f"{a} plus {b} is {a + b}.")
    return record(f"What is {a + b} minus {b}?", "", f"{a + b} minus {b} is {a}.")


def units(rng: random.Random) -> dict[str, str]:
    """One unit into a smaller one."""
    unit = rng.choice(sorted(UNITS))
    small, factor = UNITS[unit]
    n = rng.randrange(2, 30)
    return record(
        f"Convert {unit} to {small}.", f"{n} {unit}", f"{n} {unit} are {n * factor} {small}."
    )


def words(rng: random.Random) -> dict[str, str]:
    """Sort, count or reverse words."""
    some = rng.sample(WORDS, rng.randrange(2, 5))
    listed = ", ".join(some)
    task = rng.randrange(3)
    if task == 0:
        return record("Sort these words.", listed, ", ".join(sorted(some)))
    if task == 1:
        return record("How many words are in this list?", listed, f"There are {len(some)} words.")
    return record("Write the list backwards.", listed, ", ".join(reversed(some)))


def legs(rng: random.Random) -> dict[str, str]:
    """Count legs."""
    animal, n = rng.choice(ANIMALS), rng.randrange(1, 6)
    question = (
        f"How many legs do {n} {animal}s have?" if n > 1 else f"How many legs has a {animal}?"
    )
    return record(question, "", f"Together they have {n * LEGS[animal]} legs.")


def record(instruction: str, given: str, output: str) -> dict[str, str]:
    """An Alpaca record."""
    return {"instruction": instruction, "input": given, "output": output}


def alpaca(rng: random.Random) -> list[dict[str, object]]:
    """300 records, and four that cannot be used."""
    makers = (arithmetic, units, words, legs)
    rows: list[dict[str, object]] = [dict(rng.choice(makers)(rng)) for _ in range(300)]
    rows.insert(40, {"instruction": "Say nothing.", "input": "", "output": "<nooutput>"})
    rows.insert(90, {"instruction": "This row has no output.", "input": ""})
    rows.insert(150, {"instruction": "A number is no text.", "input": "", "output": 7})
    rows.insert(220, "not an object")  # type: ignore[arg-type]
    return rows


def chats(rng: random.Random) -> list[dict[str, object]]:
    """100 conversations of one to three turns, some with a system message."""
    rows: list[dict[str, object]] = []
    for i in range(100):
        messages = []
        if i % 4 == 0:
            messages.append({"role": "system", "content": "You answer in one short sentence."})
        for _ in range(rng.randrange(1, 4)):
            one = rng.choice((arithmetic, units, words, legs))(rng)
            question = f"{one['instruction']} {one['input']}".strip()
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": one["output"]})
        rows.append({"id": f"chat-{i}", "messages": messages})
    return rows


def picture(rng: random.Random, name: str) -> tuple[str, str, int]:
    """One picture of one to three equal shapes; (colour, shape, how many)."""
    colour, shape, n = rng.choice(sorted(COLOURS)), rng.choice(SHAPES), rng.randrange(1, 4)
    width, height = rng.choice(((96, 64), (64, 64), (64, 96)))
    image = Image.new("RGB", (width, height), (235, 235, 225))
    draw = ImageDraw.Draw(image)
    for k in range(n):
        x, y = (k + 0.5) * width / n, height / 2 + rng.randrange(-8, 9)
        r = min(width / n, height) * 0.35
        box = (x - r, y - r, x + r, y + r)
        if shape == "circle":
            draw.ellipse(box, COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, COLOURS[colour])
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], COLOURS[colour])
    image.save(HERE / "images" / name, quality=85)
    return colour, shape, n


def llava(rng: random.Random) -> list[dict[str, object]]:
    """90 rows: one picture, two pictures, text only, and two that cannot be used."""
    (HERE / "images").mkdir(exist_ok=True)
    shown = []
    for i in range(60):
        name = f"{i:03d}.{'png' if i % 3 == 0 else 'jpg'}"
        shown.append((name, *picture(rng, name)))
    rows: list[dict[str, object]] = []
    for i in range(90):
        name, colour, shape, n = shown[i % 60]
        if i % 9 == 4:
            one = arithmetic(rng)
            rows.append(
                {
                    "id": f"text-{i}",
                    "conversations": turns(one["instruction"] + " " + one["input"], one["output"]),
                }
            )
        elif i % 9 == 7:
            other = shown[(i * 7) % 60]
            question = "<image><image>\nDo both pictures show the same colour?"
            answer = "Yes, they do." if other[1] == colour else "No, they do not."
            rows.append(
                {
                    "id": f"two-{i}",
                    "image": [name, other[0]],
                    "conversations": turns(question, answer),
                }
            )
        else:
            answer = f"{n} {colour} {shape}{'s' if n > 1 else ''}."
            rows.append(
                {
                    "id": f"one-{i}",
                    "image": name,
                    "conversations": turns("<image>\nWhat do you see?", answer),
                }
            )
    rows.append(
        {
            "id": "missing",
            "image": "not-there.jpg",
            "conversations": turns("<image>\nWhat?", "Nothing."),
        }
    )
    rows.append(
        {
            "id": "shifted",
            "image": "000.png",
            "conversations": turns("<image><image>\nWhat?", "One.")[:1] + turns("<image>", "Two."),
        }
    )
    return rows


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """One question and its answer as LLaVA writes them."""
    return [{"from": "human", "value": question.strip()}, {"from": "gpt", "value": answer}]


def main() -> None:
    """Write everything."""
    rng = random.Random(20)
    (HERE / "alpaca.json").write_text(json.dumps(alpaca(rng), indent=1) + "\n")
    lines = [json.dumps(row) for row in chats(rng)]
    (HERE / "chats.jsonl").write_text("\n".join(lines) + "\n")
    (HERE / "llava.json").write_text(json.dumps(llava(rng), indent=1) + "\n")


if __name__ == "__main__":
    main()
