"""Mixed text to try tokenizers on: code, prose of many scripts, accents, emoji, runs of spaces; always the same."""

from __future__ import annotations

import numpy as np

__all__ = ["PROSE", "mixed_texts"]

PROSE = (
    "Once upon a time there was a small town by the sea. Every morning the fishermen went out before the sun rose, and "
    "every evening their children waited on the shore to count the boats. One day a boat did not come back. The people "
    "lit a fire on the hill and kept it burning all night, so that whoever was out there would see where home was. "
    "In the first hour of the new day a girl cried out: she had seen a light on the water, very far away. It was the "
    "lost boat. The wind had broken its mast, but the two men in it had rowed towards the fire until their hands bled. "
    "Since that night there has always been somebody on the hill. They say that it is the oldest light on the coast."
)
"""English that any language model can follow."""

_CODE = (
    'def mean(values: list[float]) -> float:\n    """Return the mean."""\n    return sum(values) / len(values)\n',
    "for (int i = 0; i < n; ++i) {\n\t\tif (a[i] != b[i]) return false;\n}\n\n\nreturn true;",
    "SELECT name, COUNT(*) AS n FROM users WHERE age >= 21 GROUP BY name ORDER BY n DESC LIMIT 10;",
    '{"id": 17, "tags": ["a", "b"], "nested": {"x": null, "y": -1.5e-3}}',
    "<div class=\"row\"><a href='https://example.org/?q=1&r=%20'>link</a></div><!-- end -->",
    "$ grep -rn 'TODO' src/ | wc -l && echo $? # 0x1F, 1_000_000, 3.14159",
    "const f = async (x) => { await g(x?.y ?? 0); return `${x}!`; };",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation} % \\alpha_{ij}",
    "@property\n        def size(self): # TODO: remove\n            self._x <<= 2; return ~self._x ^ 0b1010\n",
)
_PROSE = (
    "I'll say it's theirs, they've DON'T'd it; we'd rather you're \u201cquoted\u201d \u2014 or not\u2026",
    "Größe, Straße, Übermut: äöü ÄÖÜ ß. Ça va très bien, où est l'œuvre? El niño comió piñas. ¿Sí? ¡No!",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń. Árvíztűrő tükörfúrógép.",
    "Tiếng Việt có nhiều dấu: ngữ nghĩa, đường phố. İstanbul'da ığüşöç.",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "敏捷的棕色狐狸跳过了懒狗。人工智能模型，量化后更小、更快！",
    "吾輩は猫である。名前はまだ無い。カタカナとひらがな、漢字。",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요 세계!",
    "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ສະບາຍດີ ሰላም ልዑል გამარჯობა Բարեւ",
    "👍🏽 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇯🇵 😀😃 🏴\u200d☠\ufe0f ❤\ufe0f\u200d🔥 ☕ ✓ → ∑∫√ ½ ² ™",
    "e\u0301 a\u0308 n\u0303 (combining), zero\u200bwidth, nb\u00a0sp, thin\u2009sp, bom\ufeff, ideo\u3000sp",
    "1 12 123 1234 12345 123456 1234567 3.14 1e-9 0x7fff 2026-11-24 10:30 50% $9.99 №5 ٣٤٥ ⅷ",
    "ALLCAPS CamelCase snake_case kebab-case UPPERlower don'T O'Neil rock'n'roll ...!!!???---***===~~~",
    "aaaaaaaaaaaaaaaaaaaaaaaa supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaft",
)
_GAPS = (
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "    ",
    "        ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    " \t ",
    "\n    ",
    "\n\t\t",
    "",
    " \n ",
    "\r\n",
)
_LENGTH = 600
_COUNT = 72


def mixed_texts() -> list[str]:
    """Return texts of more than 20 kB in all: every passage alone, then passages joined with gaps of all kinds.

    >>> sum(len(text.encode()) for text in mixed_texts()) > 20_000
    True
    """
    passages = [PROSE[:200], *_CODE, *_PROSE]
    random = np.random.default_rng(17)
    texts = list(passages)
    for _ in range(_COUNT):
        text = ""
        while len(text) < _LENGTH:
            passage = passages[random.integers(len(passages))]
            start = int(random.integers(len(passage)))
            text += passage[start : start + int(random.integers(1, 120))] + _GAPS[random.integers(len(_GAPS))]
        texts.append(text)
    return texts
