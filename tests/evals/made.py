"""Files that tasks ask about: books, questions with documents, conversations, SQuAD's and HotpotQA's, made here."""

import json

WORDS = "the old giraffe saw rain and slowly walked over far hills where other trees stood".split()


def sentence(i: int) -> str:
    return f"{WORDS[i % 15].capitalize()} {WORDS[i * 7 % 13]} {WORDS[i * 5 % 11]} {i}."


def text(start: int, count: int) -> str:
    return " ".join(sentence(i) for i in range(start, start + count))


def book(folder):
    (folder / "a.txt").write_text(text(0, 3000))
    return str(folder)


def lines_of(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(folder, count=4):
    """Each document names its founding year, twice, between other sentences; every other one a person instead."""
    rows = []
    for i in range(count):
        answer = f"{1900 + i}" if i % 2 == 0 else f"Ada Byron{i}"
        middle = f"The house of number{i} was built in {answer}, as all know; ({answer}) stands on its door."
        document = f"{text(1000 * i, 150)}\n\n{middle}\n\n{text(1000 * i + 500, 150)}"
        rows.append({"document": document, "question": f"When was the house of number{i} built?", "answer": answer})
    return lines_of(folder / "questions.jsonl", rows)


def conversations(folder, count=12):
    rows = [
        {
            "topic": f"The taste of tea{i}",
            "conversation": f"USER: I would like to discuss the topic of the taste of tea{i}. \n ASSISTANT: Sure! "
            f"{text(100 * i, 12)} \n USER: Great, this is the end of our discussion on the topic The taste of tea{i}, "
            "let's talk about the next topic.",
        }
        for i in range(count)
    ]
    return lines_of(folder / "conversations.jsonl", rows)


def squad(folder):
    articles = []
    for a in range(4):
        paragraphs = []
        for p in range(5):
            answers = [{"text": f"color{a}{p}"}, {"text": f"Color{a}{p} paint"}]
            qas = [
                {"question": f"What color is door {a}-{p}?", "is_impossible": False, "answers": answers},
                {"question": "What is not said?", "is_impossible": True, "answers": []},
            ]
            context = f"{text(100 * a + 10 * p, 6)} Door {a}-{p} is painted color{a}{p}."
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": f"Doors {a}", "paragraphs": paragraphs})
    path = folder / "dev-v2.0.json"
    path.write_text(json.dumps({"data": articles}))
    return str(path)


def hotpot(folder):
    rows = []
    for i in range(12):
        context = [[f"Title {i} {k}", [f"{sentence(10 * i + k)} ", f"Fact {i} {k}."]] for k in range(3)]
        rows.append({"question": f"Which fact has number {i}?", "answer": f"Fact {i} 1", "context": context})
    path = folder / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(rows))
    return str(path)
