"""How was the small tokenizer in this folder made?

`python tests/data/tokenizer/make_tokenizer.py` writes tokenizer.json and tokenizer_config.json
beside itself: a byte-level BPE, trained on the sentences that this file generates, with ChatML
special tokens and a chat template that marks the assistant's words with {% generation %}.
The result is committed; the tests need only that.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<|pad|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

SUBJECTS = """the teacher|a small robot|my neighbour|the old captain|every student|the river|a bright star
the library|our garden|the engineer|a friendly doctor|the city council|an honest merchant|the weather
the computer|a curious child|the scientist|the painter|her grandmother|the orchestra""".replace(
    "\n", "|"
)
VERBS = """explains|remembers|builds|writes|measures|describes|follows|improves|imagines|carries|answers
compares|discovers|repairs|summarises|translates|suggests|protects|collects|changes""".replace(
    "\n", "|"
)
OBJECTS = """a long letter|the meaning of the word|three simple examples|the shortest path|a recipe for bread
the history of the town|a list of numbers|the difference between them|a short poem about winter
the temperature of the water|a healthy breakfast|the result of the experiment|an interesting question
the function that sorts the values|a map of the mountains|the capital of the country
the advantages and disadvantages|an email to the customer|the energy of the sun|a plan for the weekend
""".strip().replace("\n", "|")
ENDINGS = """before the morning|with great care|because it is useful|in order to help others|for the first time
without any mistake|while the music plays|at the end of the day|as quickly as possible|in the following way
if nobody objects|according to the instructions|on the table near the window|after a careful review
""".strip().replace("\n", "|")
ASKS = """Write a paragraph about|Explain why|Give an example of how|Describe what happens when|List five reasons why
Translate the sentence:|Summarise the following text:|Rewrite this sentence so that|Answer the question:
Create a story in which|Identify the main idea when|Generate a headline for""".replace("\n", "|")
WORDS = """about above across action active actually address affect after again against agree air all allow almost alone
along already also always among amount analysis animal another answer any apple apply area around arrive article artist
ask assistant attention author available average avoid away baby back balance ball bank base basic beautiful because become
bed before begin behaviour behind believe below benefit best better between big bird black blood blue board boat body book
both bottom box brain branch bread break bridge bright bring brother brown budget build business but butter button buy call
camera camp can car card care carry case cat cause cell centre central certain chain chair chance change character check
cheese chemical child choose church circle citizen class clean clear climate clock close cloth cloud coast code coffee cold
collect colour column combine come comfort command common community company compare complete computer concept condition
connect consider contain context continue control cook cool copy corner correct cost could count country couple course
cover create cross crowd culture cup current customer cut daily dance danger dark data date daughter day dead deal dear
decide deep define degree deliver demand depend describe design desk detail develop device dictionary different difficult
dinner direct discuss disease distance divide doctor document dog door double doubt down draw dream dress drink drive drop
dry during early earth east easy eat economy edge education effect effort eight either electric element else email empty
end energy engine enjoy enough ensure enter entire environment equal error especially even evening event ever every exact
example except exercise expect experience explain express eye face fact fall family famous far farm fast father favourite
fear feature feel few field fight figure file fill film final find fine finger finish fire first fish five flat floor flow
flower fly focus follow food foot force forest forget form forward four free fresh friend front fruit full function further
future game garden gas general generate get girl give glass global go gold good government grass great green ground group
grow guess guide hair half hand happen happy hard hat have head health hear heart heat heavy help here high hill history
hold hole home hope horse hospital hot hour house how however huge human hundred hurry idea identify if image imagine
impact important improve include increase indeed industry information inside instead instruction interest into invest
iron island issue item itself job join journey joy judge jump just keep key kind king kitchen know knowledge lake land
language large last late laugh law lead leaf learn least leave left leg length less letter level library life light like
limit line list listen little live local long look lose lot loud love low lunch machine magic main make man manage many
map mark market material matter may maybe mean measure meat medical meet member memory mention message metal method middle
might mile milk million mind minute miss model modern moment money month moon more morning most mother mountain mouth move
much music must name narrow nation nature near necessary need network never new news next nice night nine no noise none
north nose note nothing notice now number object ocean of off offer office often oil old once one only open operation
opinion opportunity option orange order organise original other our out outside over own page paint pair paper paragraph
parent park part particular partner pass past path patient pattern pay peace people perfect perhaps period person phone
photo phrase physical picture piece place plan plane plant plate play please plenty point poor popular position possible
potato pound power practice prepare present president press pretty prevent price print private probably problem process
produce product program project promise protect provide public pull pure purpose push put quality quarter queen question
quick quiet quite radio rain raise range rate rather reach read ready real reason receive recent recipe record red reduce
region relate remain remember repeat replace report represent require research resource response rest result return rich
right ring rise risk road rock role room root rough round rule run safe salt same sand save say scale school science sea
season seat second secret section see seem select sell send sense sentence separate series serious serve service set seven
several shape share sharp sheet ship shirt shoe shop short should shoulder show side sign silver similar simple since sing
single sister sit situation six size skill skin sky sleep slow small smell smile smooth snow social society soft software
soil solution solve some son song soon sort sound source south space speak special speed spell spend sport spring square
stage stand star start state station stay step still stone stop store story strange street strength string strong structure
student study style subject success such sudden sugar suggest suit summer sun supply support sure surface surprise sweet
swim system table take talk tall task taste teach team technology tell ten term test text than thank that their them then
theory there therefore these thick thin thing think third this those though thought thousand three through throw time title
today together tomorrow too tool top total touch toward town track trade traditional train travel tree triangle trip trouble
true trust truth try turn twenty two type under understand unit until up upon use useful user usually valley value various
very view village visit voice vote wait walk wall want war warm wash waste watch water wave way weak wear weather week
weight welcome well west what wheel when where which while white who whole why wide wild will win wind window winter wish
with within without woman wonder wood word work world worry would write wrong year yellow yes yesterday yet you young your
"""
CODE = """def add(left: int, right: int) -> int:
    return left + right
for index in range(10):
    print(index, values[index])
if value is None:
    raise ValueError("missing value")
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y
import json
with open(path) as file:
    data = json.load(file)
{"name": "value", "list": [1, 2, 3], "true": false}
SELECT name FROM people WHERE age > 30;
<div class="box"><p>text</p></div>
while not finished: count += 1
"""
OTHER = """Être ou ne pas être, c'est là une question. Größe, Straße, fünf Äpfel.
Вода течёт под мостом, и солнце светит. 今天天气很好,我们去公园散步。 お元気ですか。
The price is $4.99 (about 5%), e.g. 3 x 7 = 21; see page 12-14.
😀 🎉 👍 → ≤ ≥ … “quoted” — dash
"""


def sentences(n: int, seed: int) -> Iterator[str]:
    """n lines of plain English, digits and code, all made up here."""
    rng = random.Random(seed)
    words = WORDS.split()
    lists = [text.split("|") for text in (SUBJECTS, VERBS, OBJECTS, ENDINGS, ASKS)]
    subjects, verbs, objects, endings, asks = lists
    code = CODE.splitlines(keepends=True)
    for number in itertools.islice(itertools.count(), n):
        subject, verb, thing = rng.choice(subjects), rng.choice(verbs), rng.choice(objects)
        end = rng.choice(endings)
        yield f"{subject.capitalize()} {verb} {thing} {end}.\n"
        yield f"{rng.choice(asks)} {subject} {verb} {thing}?\n"
        line = rng.sample(words, 9)
        yield f"{line[0].capitalize()} {' '.join(line[1:5])}, {' '.join(line[5:])}.\n"
        yield f"{line[8].capitalize()} {line[3].capitalize()}: {line[6]}\n"
        if number % 5 == 0:
            yield f"{number}. On day {rng.randrange(1, 31)} we counted {rng.randrange(10_000)} items.\n"
            yield "".join(rng.sample(code, 3))
        if number % 50 == 0:
            yield OTHER
            yield " ".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 10)) + "\n\n\t"


def main() -> None:
    """Train and write both files."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(4000, seed=7), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    folder = Path(__file__).parent
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<|im_start|>", "<image>"],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
